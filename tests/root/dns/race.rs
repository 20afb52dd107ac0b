//! E03: a client that connects the moment it has an answer is never refused, however busy the machine is.

use lab::{Entry, Lab, Running};
use std::time::Duration;

const LOOK_UPS: usize = 5000;
const BURNERS: usize = 4;

#[test]
fn e03_resolve_then_connect() {
    let lab = Lab::without_capture();
    // Every name has an address of its own, so every connection stands or falls by its own permit.
    lab.sink_ns().ip("route add local 198.18.0.0/16 dev lo");
    for number in 0..LOOK_UPS {
        let address = format!("198.18.{}.{}", number / 250, number % 250 + 1);
        lab.zone().put(&format!("n{number}.race.test"), Entry::at(&[&address]).ttl(1));
    }
    // Each by itself: new names below a wildcard are counted, against tunnels.
    let names: Vec<String> = (0..LOOK_UPS).map(|number| format!("\"n{number}.race.test:80\"")).collect();
    let policy = lab.file(
        "race.toml",
        &format!(
            "version = 1
            [allow]
            names = [{}]
            [dns]
            pre_resolve = \"off\"
            queries_per_second = 5000",
            names.join(", ")
        ),
    );
    let race = lab.compiled("race");
    let _burners: Vec<Running> = (0..BURNERS)
        .map(|_| {
            let mut burner = lab.box_ns().command("sh");
            burner.args(["-c", "while :; do :; done"]);
            Running::spawn(burner)
        })
        .collect();
    // Half of them in each shape: a sandbox learns no more than some thousand addresses at a time.
    let half = LOOK_UPS / 2;
    for (first, (shape, run)) in [0, half].into_iter().zip(lab.shapes()) {
        let script = format!(
            "curl -sS -m3 http://198.18.0.1/; echo before=$?
            {race} {} 80 {half} {first} race.test",
            lab::DNS
        );
        let output = run.arg("--policy").arg(&policy).sh(&script).deadline(Duration::from_secs(120)).output();
        assert_eq!(output.step("before"), 7, "no address is open before its name was asked for: {output}");
        for (what, count) in [("refused", 0), ("other", 0), ("lost", 0), ("connected", half as i32)] {
            assert_eq!(output.step(what), count, "{shape} {what}: {output}");
        }
    }
}
