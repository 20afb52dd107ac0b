use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A label of 32 characters that was not there before.
fn word(number: u32) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bits = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        bits = bits.rotate_left(5).wrapping_mul(0x2545_f491_4f6c_dd1d);
        char::from(alphabet[(bits >> 59) as usize])
    };
    format!("{}{number:06}", (0..26).map(letter).collect::<String>())
}

#[test]
fn f08_at_most_4_kib_of_new_labels_leave_in_any_minute() {
    let (mut tunnels, start) = (Tunnels::default(), Instant::now());
    let mut sent: Vec<(u64, usize)> = Vec::new();
    let mut reports = 0;
    for number in 0..10_000 {
        let second = u64::from(number) / 20;
        let label = word(number);
        let (passes, report) =
            tunnels.take(&name(&format!("{label}.wild.test")), 1, start + Duration::from_secs(second));
        if passes {
            sent.push((second, label.len()));
        }
        reports += u64::from(report.is_some());
    }
    for from in 0..500 {
        let octets: usize =
            sent.iter().filter(|(at, _)| (from..from + 60).contains(at)).map(|(_, octets)| octets).sum();
        assert!(octets <= 4096, "{octets} octets in the minute from {from}");
    }
    assert!(sent.len() > 100, "some pass");
    assert!((300..=500).contains(&reports), "{reports} reports in 500 s");
}

#[test]
fn f08_names_are_counted_too_and_known_ones_are_free() {
    let (mut tunnels, start) = (Tunnels::default(), Instant::now());
    let passes = |tunnels: &mut Tunnels, text: &str, now| tunnels.take(&name(text), 1, now).0;
    let count = (0..300).filter(|number| passes(&mut tunnels, &format!("n{number}.wild.test"), start)).count();
    assert_eq!(count, 200);
    assert!(passes(&mut tunnels, "n0.wild.test", start), "the other family");
    assert!(passes(&mut tunnels, "n0.other.test", start), "another wildcard has its own");
    assert!(passes(&mut tunnels, "later.wild.test", start + Duration::from_secs(1)));
    assert!(!passes(&mut tunnels, "too-soon.wild.test", start + Duration::from_secs(1)));
    let (_, report) = tunnels.take(&name("again.wild.test"), 1, start + Duration::from_secs(1));
    assert_eq!(report, None, "one report a second");
}

#[test]
fn f08_names_are_neither_deep_nor_long() {
    let outsized = |text: &str, free| is_outsized(&name(text).labels(), free);
    assert!(!outsized("a.b.c.d.e.f.wild.test", 6));
    assert!(outsized("a.b.c.d.e.f.g.wild.test", 7));
    let label = "x".repeat(56);
    assert!(!outsized(&format!("{label}.{label}.{label}.t.test"), 3));
    assert!(outsized(&format!("{label}.{label}.{label}.wil.test"), 3));
}

#[test]
fn f09_names_as_builds_ask_for_them_stay_below_the_limits() {
    let (mut tunnels, start) = (Tunnels::default(), Instant::now());
    // A build's hosts, shaped as large hosters shape them; each is asked twice, within half a minute.
    let mut names: Vec<(String, usize)> = Vec::new();
    for number in 0..40 {
        names.push((format!("productionresultssa{number}.blob.core.test"), 1));
        names.push((
            format!("d{:013x}.cdn-front.test", u64::from(word(number).as_bytes()[0]) * 7919 + u64::from(number)),
            1,
        ));
    }
    for region in ["us-east-1", "us-west-2", "eu-central-1", "ap-southeast-2"] {
        for bucket in ["my-artifacts", "prod-starport-layer-bucket", "npm-cache"] {
            names.push((format!("{bucket}.s3.dualstack.{region}.hoster.test"), 4));
        }
    }
    for host in ["registry", "files", "pypi", "index", "static", "objects", "raw", "codeload", "pkg-containers", "api"]
    {
        names.push((format!("{host}.forge.test"), 1));
        names.push((format!("{host}.eu.forge.test"), 2));
    }
    for (index, (text, free)) in names.iter().chain(&names).enumerate() {
        let now = start + Duration::from_millis(index as u64 * 130);
        assert!(!is_outsized(&name(text).labels(), *free), "{text}");
        assert!(tunnels.take(&name(text), *free, now).0, "{text}");
    }
}
