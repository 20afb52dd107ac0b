//! The level that `run` prints is the one that the command has, and `--require` holds it to that.

use crate::job::judges_foreign;
use lab::Lab;

const NONE: &str = "level none; ";

#[test]
fn the_printed_level_is_exact_and_less_than_required_does_not_start() {
    let lab = Lab::new();
    let judged = judges_foreign(&lab);
    // Own namespace, flags, user, the beginning of the line, the highest level that may be required.
    let cases = [
        (false, "", "nobody", "level L1; for L2: ", 1),
        (false, "--share pid", "nobody", "level L1, minus same-user processes; ", 1),
        (
            false,
            "--share mounts",
            "nobody",
            "level L1, minus same-user processes, minus sockets of engines and resolvers; ",
            1,
        ),
        (false, "", "root", NONE, 0),
        (true, "", "nobody", "level L2\n", 2),
        (true, "--share pid", "nobody", "level L2, minus same-user processes; ", 2),
        (true, "--keep-cap net_raw", "nobody", "level L2\n", 2),
        (true, "--keep-cap net_admin", "nobody", NONE, 0),
        (true, "--keep-cap chown", "nobody", NONE, 0),
    ];
    for (at, (own_netns, flags, user, line, highest)) in cases.into_iter().enumerate() {
        let run = |more: &str, token: &str| {
            let run = lab.egressd("run").flags("--allow ok.test").flags(flags).flags(more).user(Some(user));
            let run = if own_netns { run.entering(lab.box_ns()) } else { run };
            run.sh(&format!("exec curl -fsS -m5 http://ok.test/{token}")).output()
        };
        let token = lab.token(&format!("plain-{at}"));
        let output = run("", &token);
        assert!(output.exits(0).stderr.contains(&format!("egressd: {line}")), "{flags} {user}: {output}");
        // A device judges whatever passes it.
        let says = output.stderr.contains("passed in from outside are not judged");
        assert_eq!(says, !judged && !own_netns && user != "root", "{flags} {user}: {output}");
        lab.expect_hits(&token, 1);
        for level in 1..=3 {
            let token = lab.token(&format!("required-{at}-{level}"));
            let output = run(&format!("--require L{level}"), &token);
            if level <= highest {
                output.exits(0);
                lab.expect_hits(&token, 1);
            } else {
                assert!(output.exits(125).stderr.contains(&format!("L{level} was required")), "{flags}: {output}");
                assert!(lab.hits(&token).is_empty(), "{flags} {user}: it did not run");
            }
        }
    }
}
