//! T29: which names a policy opens, whatever the order of its lines.

use lab::{EVIL, Entry, Inside, Lab};
use std::collections::BTreeSet;

/// Lines of a policy, in an order that must not matter.
const LINES: [&str; 5] = [
    "--allow github.test",
    "--allow *.github.test",
    "--allow iapi.merck.test",
    "--allow *.wild.test",
    "--deny secret.github.test",
];

/// Names that these lines open, and the last octet of the address that each has.
const OPEN: [(&str, u8); 24] = [
    ("github.test", 10),
    ("GitHub.TEST", 10),
    ("github.test.", 10),
    ("GITHUB.test.", 10),
    ("api.github.test", 11),
    ("API.github.test", 11),
    ("a.b.c.github.test", 11),
    ("sub.secret.github.test", 11),
    ("xsecret.github.test", 11),
    ("github.github.test", 11),
    ("evil.test.github.test", 11),
    ("_x.github.test", 11),
    ("xn--bcher-kva.github.test", 11),
    ("iapi.merck.test", 12),
    ("IAPI.Merck.Test", 12),
    ("iapi.merck.test.", 12),
    ("x.wild.test", 13),
    ("a.b.wild.test", 13),
    ("wild.wild.test", 13),
    ("secret.wild.test", 13),
    ("github.test.wild.test", 13),
    ("b\u{fc}cher.wild.test", 13),
    ("X.WILD.TEST", 13),
    ("0.wild.test", 13),
];

/// Names that look like them.
const CLOSED: [&str; 26] = [
    "secret.github.test",
    "SECRET.github.test",
    "secret.github.test.",
    "github.test.evil.test",
    "api.github.test.evil.test",
    "notgithub.test",
    "xgithub.test",
    "github-test",
    "githubxtest",
    "github.tes",
    "github.testx",
    "github.test.x",
    "wild.test",
    "wild.test.",
    "xwild.test",
    "x.wildx.test",
    "merck.test",
    "api.merck.test",
    "xiapi.merck.test",
    "x.iapi.merck.test",
    "iapi.merck.test.evil.test",
    "iapi-merck.test",
    "test",
    "evil.test",
    "g\u{ef}thub.test",
    "\u{261}ithub.test",
];

/// Every name has an address, and those that must stay closed lead to the evil sink.
fn names(lab: &Lab) {
    for (name, host) in OPEN {
        let ascii = name.replace("b\u{fc}cher", "xn--bcher-kva");
        lab.zone().put(&ascii, Entry::at(&[&format!("198.51.100.{host}")]));
    }
    for name in CLOSED {
        lab.zone().put(name, Entry::at(&["198.51.100.20"]));
    }
    for name in ["xn--gthub-cta.test", "xn--ithub-qmc.test"] {
        lab.zone().put(name, Entry::at(&["198.51.100.20"]));
    }
}

/// The same lines in the order of that number, of the 120 that there are.
fn shuffled(mut number: usize) -> String {
    let mut left = LINES.to_vec();
    let mut order = Vec::new();
    while !left.is_empty() {
        let choices = left.len();
        order.push(left.remove(number % choices));
        number /= choices;
    }
    order.join(" ")
}

#[test]
fn t29_name_matching() {
    const ROUNDS: usize = 100;
    let lab = Lab::new();
    names(&lab);
    let targets = |token: &str| {
        let all = OPEN.iter().map(|(name, _)| *name).chain(CLOSED);
        all.map(|name| format!("-o /dev/null http://{name}/{token}")).collect::<Vec<_>>().join(" ")
    };
    for round in 0..ROUNDS {
        let token = lab.token(&format!("{round}-round"));
        let (_, run) = lab.shapes().into_iter().nth(round % 2).unwrap();
        // Its exit status is the last name's.
        run.flags(&shuffled(round))
            .sh(&format!("curl -sS -m5 {} 2>/dev/null; true", targets(&token)))
            .output()
            .exits(0);
        let mut hits: Vec<_> = lab.expect_hits(&token, OPEN.len()).iter().map(|hit| hit.dst.ip().to_string()).collect();
        let mut expected: Vec<_> = OPEN.iter().map(|(_, host)| format!("198.51.100.{host}")).collect();
        hits.sort();
        expected.sort();
        assert_eq!(hits, expected, "{}", shuffled(round));
    }
    lab.expect_silence(EVIL);
    let denied: BTreeSet<String> = CLOSED.iter().map(|name| name.trim_end_matches('.').to_lowercase()).collect();
    let asked: Vec<_> = lab.zone().queries().into_iter().filter(|query| denied.contains(&query.name)).collect();
    assert!(asked.is_empty(), "{asked:?}");

    // No names, one, four.
    for (flags, open) in [
        ("--allow 198.51.100.15", 0),
        ("--allow iapi.merck.test", 3),
        ("--allow github.test --allow api.github.test --allow iapi.merck.test --allow x.wild.test", 11),
    ] {
        let token = lab.token(&format!("few{open}-run"));
        lab.sh(flags, &format!("curl -sS -m5 {} 2>/dev/null; true", targets(&token))).exits(0);
        lab.expect_hits(&token, open);
    }
    lab.expect_silence(EVIL);

    let inside = Inside::start(lab.egressd("run").flags(&shuffled(0)));
    let told = lab.egressd("explain").arg("secret.github.test:80").output();
    told.exits(0).says("denied_by_rule, by \"secret.github.test\"");
    lab.egressd("explain").arg("api.github.test:80").output().exits(0).says("*.github.test");
    inside.end();
    lab.unconfined(&format!("curl -fsS -m3 http://{EVIL}/")).exits(0);
    assert!(!lab.frames_to(EVIL).is_empty(), "the control arrives");
}
