//! B01 to B12 where registries draw the lines: every entry of the public suffix list, asked for as on the wire. What to expect
//! is said by a second opinion, which knows of text and dots and of no labels.

use crate::{
    dns::{
        NameVerdict, Names, Reason,
        gate::{self, Decision},
        wire,
    },
    policy::{NameError, NamePattern, NameTable, Policy},
};
use std::{
    collections::{HashMap, HashSet},
    fs,
};

const LIST: &str = "/usr/share/publicsuffix/public_suffix_list.dat";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Anybody can register below it.
    Icann,
    /// One owner hands out names below it.
    Private,
    /// A name that would be a suffix if the list did not except it.
    Excepted,
}

struct Suffix {
    /// In its own script.
    written: String,
    /// As DNS carries it.
    ascii: String,
    kind: Kind,
}

fn suffixes() -> Vec<Suffix> {
    let text = fs::read_to_string(LIST)
        .unwrap_or_else(|error| panic!("{LIST}: {error}: `sudo make setup` installs the package publicsuffix"));
    let (icann, private) = text.split_once("===END ICANN DOMAINS===").unwrap();
    let read = |text: &str, section| {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        let suffix = |line: &str| match line.strip_prefix('!') {
            Some(name) => (name.to_owned(), Kind::Excepted),
            // `*.ck`: any name below ck is a suffix.
            None => (line.replacen('*', "any", 1), section),
        };
        lines.map(suffix).collect::<Vec<_>>()
    };
    let all = [read(icann, Kind::Icann), read(private, Kind::Private)].concat();
    all.into_iter().map(|(written, kind)| Suffix { ascii: ascii(&written), written, kind }).collect()
}

fn ascii(name: &str) -> String {
    let label = |label: &str| if label.is_ascii() { label.to_owned() } else { format!("xn--{}", punycode(label)) };
    name.split('.').map(label).collect::<Vec<_>>().join(".")
}

/// RFC 3492, 6.3. Entries of the list are in normal form already, so this is all that IDNA does to them.
fn punycode(label: &str) -> String {
    const BASE: u32 = 36;
    let points: Vec<u32> = label.chars().map(u32::from).collect();
    let mut out: String = label.chars().filter(char::is_ascii).collect();
    let basic = out.len() as u32;
    if basic > 0 {
        out.push('-');
    }
    let (mut next, mut delta, mut bias, mut done) = (128, 0, 72, basic);
    while (done as usize) < points.len() {
        let least = points.iter().copied().filter(|point| *point >= next).min().unwrap();
        delta += (least - next) * (done + 1);
        next = least;
        for &point in &points {
            delta += u32::from(point < next);
            if point != next {
                continue;
            }
            let mut rest = delta;
            for step in (BASE..).step_by(BASE as usize) {
                let threshold = step.saturating_sub(bias).clamp(1, 26);
                if rest < threshold {
                    break;
                }
                let (above, place) = (rest - threshold, BASE - threshold);
                out.push(digit(threshold + above % place));
                rest = above / place;
            }
            out.push(digit(rest));
            let mut scaled = delta / if done == basic { 700 } else { 2 };
            scaled += scaled / (done + 1);
            bias = 0;
            while scaled > 455 {
                scaled /= 35;
                bias += BASE;
            }
            bias += BASE * scaled / (scaled + 38);
            delta = 0;
            done += 1;
        }
        delta += 1;
        next += 1;
    }
    out
}

/// a to z, 0 to 9.
fn digit(value: u32) -> char {
    char::from_u32(if value < 26 { 'a' as u32 + value } else { '0' as u32 + value - 26 }).unwrap()
}

/// What comes of a name.
#[derive(PartialEq, Eq, Debug)]
enum Told {
    Open { rules: Vec<usize>, free_labels: Option<usize> },
    Denied(usize),
    Ancestor,
    Unlisted,
}

struct Rules(NameTable);

impl Names for Rules {
    fn verdict(&self, labels: &[&[u8]]) -> NameVerdict {
        self.0.verdict(labels)
    }
}

/// The gate's word about a question for the A records of these labels.
fn told(rules: &Rules, labels: &[&[u8]]) -> Told {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        message.push(label.len() as u8);
        message.extend(*label);
    }
    message.extend([0, 0, 1, 0, 1]);
    let (query, refused) = wire::read(&message).unwrap();
    assert_eq!(refused, None, "{labels:?}");
    match gate::decide(&query.question, rules, false, false) {
        Decision::Forward { pass, refusal: None } => Told::Open { rules: pass.rules, free_labels: pass.free_labels },
        Decision::Deny(refusal) => match (refusal.reason, refusal.rule) {
            (Reason::DenyRule, Some(rule)) => Told::Denied(rule),
            (Reason::Ancestor, None) => Told::Ancestor,
            (Reason::Unlisted | Reason::Local, None) => Told::Unlisted,
            other => panic!("{labels:?}: {other:?}"),
        },
        other => panic!("{labels:?}: {other:?}"),
    }
}

fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.').map(str::as_bytes).collect()
}

/// The second opinion.
#[derive(Default)]
struct Opinion {
    exact: HashMap<String, usize>,
    below: HashMap<String, usize>,
    denied: HashMap<String, usize>,
    above: HashSet<String>,
}

impl Opinion {
    fn allows(&mut self, name: &str) {
        self.above.extend(Self::ends(name).map(|(_, end)| end.to_owned()));
        self.above.insert(name.to_owned());
    }

    /// What stands before a dot, and behind it.
    fn ends(name: &str) -> impl Iterator<Item = (&str, &str)> {
        name.match_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]))
    }

    fn told(&self, name: &str) -> Told {
        if let Some(rule) = self.denied.get(name) {
            return Told::Denied(*rule);
        }
        let exact = self.exact.get(name);
        let below: Vec<_> = Self::ends(name).filter_map(|(front, end)| Some((front, *self.below.get(end)?))).collect();
        let mut rules: Vec<_> = exact.copied().into_iter().chain(below.iter().map(|(_, rule)| *rule)).collect();
        rules.sort_unstable();
        let free_labels = below.first().filter(|_| exact.is_none()).map(|(front, _)| front.matches('.').count() + 1);
        match rules.is_empty() {
            false => Told::Open { rules, free_labels },
            true if self.above.contains(name) => Told::Ancestor,
            true => Told::Unlisted,
        }
    }
}

/// Names around one that a rule bears: its own, those below and above it, beside it, and those that only look like it.
fn around(base: &str) -> Vec<String> {
    let (first, rest) = base.split_once('.').unwrap();
    vec![
        base.to_owned(),
        format!("x.{base}"),
        format!("x.y.{base}"),
        rest.to_owned(),
        format!("z.{rest}"),
        format!("evil{base}"),
        format!("x.evil{base}"),
        format!("{first}.evil{rest}"),
        format!("{first}{rest}"),
        format!("{first}-{rest}"),
        format!("{base}x"),
        format!("{base}.evil.test"),
        format!("x.{base}.evil.test"),
    ]
}

#[test]
fn b01_b12_every_public_suffix_bounds_its_names() {
    let mut suffixes = suffixes();
    // Above the reverse tree, which has rules of its own.
    suffixes.retain(|suffix| !["arpa", "in-addr.arpa", "ip6.arpa"].contains(&&*suffix.ascii));
    assert!(suffixes.len() > 9000, "{} entries", suffixes.len());
    assert!(suffixes.iter().filter(|suffix| suffix.written != suffix.ascii).count() > 200);
    let (mut opinion, mut allow, mut deny) = (Opinion::default(), Vec::new(), Vec::new());
    for (index, Suffix { written, ascii, .. }) in suffixes.iter().enumerate() {
        allow.extend([format!("api.{written}"), format!("*.wild.{written}")]);
        deny.push(format!("no.wild.{written}"));
        opinion.exact.insert(format!("api.{ascii}"), 2 * index);
        opinion.below.insert(format!("wild.{ascii}"), 2 * index + 1);
        opinion.denied.insert(format!("no.wild.{ascii}"), index);
        for name in [format!("api.{ascii}"), format!("wild.{ascii}")] {
            opinion.allows(&name);
        }
    }
    let list = |names: &[String]| format!("names = [\"{}\"]", names.join("\", \""));
    let policy = Policy::from_toml(&format!("[allow]\n{}\n[deny]\n{}", list(&allow), list(&deny))).unwrap();
    let rules = Rules(NameTable::new(&policy));
    let mut open = 0;
    for Suffix { written, ascii, .. } in &suffixes {
        for base in [format!("api.{ascii}"), format!("wild.{ascii}"), format!("no.wild.{ascii}")] {
            for name in around(&base) {
                let expected = opinion.told(&name);
                open += usize::from(matches!(expected, Told::Open { .. }));
                assert_eq!(told(&rules, &labels(&name)), expected, "{name}");
                assert_eq!(told(&rules, &labels(&name.to_ascii_uppercase())), expected, "{name} in capitals");
            }
        }
        // A dot within a label is no border, and DNS carries no other script.
        let mut odd = vec![[&[&b"x.wild"[..]], &*labels(ascii)].concat(), [&[&b"api\0"[..]], &*labels(ascii)].concat()];
        let joined = format!("api.{}", ascii.split('.').next().unwrap());
        odd.push([&[joined.as_bytes()], &labels(ascii)[1..]].concat());
        let raw = format!("api.{written}");
        odd.extend((written != ascii).then(|| labels(&raw)));
        for name in odd {
            assert_eq!(told(&rules, &name), Told::Unlisted, "{name:?}");
        }
    }
    assert!(open >= 5 * suffixes.len(), "{open} open names");
}

/// egressd's own list is newer: entries have gone from it (those below museum), or to its other section; top-level domains stay.
#[test]
fn b12_wildcards_over_public_suffixes_are_refused_and_over_private_ones_told() {
    let suffixes = suffixes();
    let mut moved = HashSet::new();
    for Suffix { written, ascii, kind } in &suffixes {
        for form in [written, ascii] {
            assert_eq!(form.parse::<NamePattern>().unwrap().base(), ascii, "the name itself may always be listed");
            for wildcard in [format!("*.{form}"), format!(".{form}")] {
                let pattern = wildcard.parse::<NamePattern>();
                match (kind, &pattern) {
                    (Kind::Icann, Err(NameError::TopLevel { base, .. } | NameError::PublicSuffix { base, .. })) => {
                        assert_eq!(base, ascii);
                    }
                    (Kind::Private, Ok(pattern)) if pattern.private_suffix() == Some(ascii) => {}
                    (Kind::Excepted, Ok(pattern)) => assert_eq!(pattern.private_suffix(), None, "{wildcard}"),
                    _ if ascii.contains('.') => {
                        moved.insert(ascii);
                    }
                    _ => panic!("{wildcard}, {kind:?}: {pattern:?}"),
                }
            }
        }
    }
    assert!(moved.len() < suffixes.len() / 8, "{} of {}: {moved:?}", moved.len(), suffixes.len());
}
