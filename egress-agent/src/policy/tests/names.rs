//! Name patterns and the table of all of them.

use crate::policy::{NamePattern, NameTable, NameVerdict, Policy};
use std::time::Instant;

fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect()
}

fn error(text: &str) -> String {
    text.parse::<NamePattern>().expect_err(text).to_string()
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let policy = allow.iter().fold(Policy::deny_all(), |policy, dest| policy.allow(dest.parse().unwrap()));
    deny.iter().fold(policy, |policy, dest| policy.deny(dest.parse().unwrap()))
}

fn verdict(policy: &Policy, name: &str) -> NameVerdict {
    NameTable::new(policy).verdict(&labels(name))
}

fn allowed(rules: &[usize]) -> NameVerdict {
    NameVerdict::Allow { rules: rules.to_vec(), free_labels: None }
}

/// By a wildcard, below whose base the name has so many labels.
fn allowed_below(rules: &[usize], free_labels: usize) -> NameVerdict {
    NameVerdict::Allow { rules: rules.to_vec(), free_labels: Some(free_labels) }
}

#[test]
fn b11_patterns_have_one_form() {
    for (text, want) in [
        ("GitHub.com", "github.com"),
        ("github.com.", "github.com"),
        ("*.GitHub.com.", "*.github.com"),
        (".github.com", ".github.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("ﬁ.example", "fi.example"),
        ("ⓔ.example", "e.example"),
        ("*.bücher。example", "*.xn--bcher-kva.example"),
        ("_443._tcp.example.com", "_443._tcp.example.com"),
        ("a-.example.com", "a-.example.com"),
        ("*.lab.test", "*.lab.test"),
        ("*.github.io", "*.github.io"),
        ("github.io", "github.io"),
        ("com", "com"),
        ("co.uk", "co.uk"),
        ("*.example.co.uk", "*.example.co.uk"),
    ] {
        let pattern: NamePattern = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(pattern.to_string(), want, "{text}");
    }
    assert!(format!("{}.example", "a".repeat(63)).parse::<NamePattern>().is_ok());
}

#[test]
fn b12_patterns_that_open_too_much_or_nothing_are_refused() {
    let long = format!("{}.example", "a".repeat(64));
    let longer = [["a"; 50].join("."), ["b"; 78].join(".")].join(".");
    for (text, part) in [
        ("*", "would open every name"),
        ("*.", "would open every name"),
        (".", "would open every name"),
        ("*.com", "would open a whole top-level domain; name the registrable domain, e.g. \"*.example.com\""),
        (".com", "top-level domain"),
        ("*.test", "top-level domain"),
        ("*.COM.", "top-level domain"),
        ("*.co.uk", "would open a whole public suffix; name the registrable domain, e.g. \"*.example.co.uk\""),
        (".co.uk", "public suffix"),
        ("*.公司.cn", "public suffix"),
        ("*.xn--55qx5d.cn", "public suffix"),
        ("a*.example.com", "e.g. \"*.example.com\""),
        ("a.*.example.com", "e.g. \"*.example.com\""),
        ("*.*.example.com", "e.g. \"*.example.com\""),
        ("**.example.com", "e.g. \"*.example.com\""),
        ("a*", "a * inside"),
        ("..example.com", "empty label"),
        ("a..example.com", "empty label"),
        ("example.com..", "empty label"),
        ("", "empty label"),
        ("exa!mple.com", "contains '!'"),
        ("exa\\mple.com", "contains '\\\\'"),
        (long.as_str(), "label of 64 bytes"),
        (longer.as_str(), "255 characters long"),
        ("xn--a\u{200d}.example", "UTS 46"),
        ("localhost", "allow.loopback"),
        ("*.localhost", "allow.loopback"),
        ("a.localhost.", "allow.loopback"),
    ] {
        let message = error(text);
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn b01_b02_b03_b04_b09_matching_is_by_label_and_in_any_case() {
    let exact = policy(&["api.github.com"], &[]);
    assert_eq!(verdict(&exact, "api.github.com"), allowed(&[0]));
    assert_eq!(verdict(&exact, "API.GitHub.Com"), allowed(&[0]));
    for ancestor in ["github.com", "com", ""] {
        assert_eq!(verdict(&exact, ancestor), NameVerdict::Ancestor, "{ancestor}");
    }
    for other in ["evilgithub.com", "github.com.evil.net", "api.github.com.evil", "x.api.github.com", "org"] {
        assert_eq!(verdict(&exact, other), NameVerdict::Unlisted, "{other}");
    }

    let below = policy(&["*.github.com"], &[]);
    assert_eq!(verdict(&below, "github.com"), NameVerdict::Ancestor);
    assert_eq!(verdict(&below, "a.b.github.com"), allowed_below(&[0], 2));
    assert_eq!(verdict(&below, "evilgithub.com"), NameVerdict::Unlisted);
    let both = policy(&[".github.com"], &[]);
    assert_eq!(verdict(&both, "github.com"), allowed(&[0]));
    assert_eq!(verdict(&both, "a.github.com"), allowed_below(&[0], 1));
    assert_eq!(verdict(&Policy::deny_all(), ""), NameVerdict::Unlisted);
}

#[test]
fn b08_b10_a_label_with_odd_bytes_is_one_label() {
    let table = NameTable::new(&policy(&["*.github.com"], &[]));
    assert_eq!(table.verdict(&[b"api.github", b"com"]), NameVerdict::Unlisted);
    assert_eq!(table.verdict(&[b"a\0\xffb", b"github", b"com"]), allowed_below(&[0], 1));
    assert_eq!(table.verdict(&[b"a", &[b'b'; 64], b"com"]), NameVerdict::Unlisted);
    let many: Vec<&[u8]> = std::iter::repeat_n(&b"a"[..], 200).chain([&b"github"[..], &b"com"[..]]).collect();
    assert_eq!(table.verdict(&many), NameVerdict::Unlisted);
}

#[test]
fn b05_b06_deny_beats_allow_whatever_its_length() {
    let narrow = policy(&["*.example.com"], &["ads.example.com"]);
    assert_eq!(verdict(&narrow, "ads.example.com"), NameVerdict::Deny { rule: 0 });
    assert_eq!(verdict(&narrow, "a.ads.example.com"), allowed_below(&[0], 2));
    let wide = policy(&["api.example.com"], &["*.example.com"]);
    assert_eq!(verdict(&wide, "api.example.com"), NameVerdict::Deny { rule: 0 });
    assert_eq!(verdict(&wide, "example.com"), NameVerdict::Ancestor);
    assert!(wide.check().is_err());
}

#[test]
fn all_allows_that_match_count() {
    let policy = policy(&["*.example.com:443", "a.example.com:22", ".a.example.com:80", "b.example.com"], &[]);
    assert_eq!(verdict(&policy, "a.example.com"), allowed(&[0, 1, 2]));
    assert_eq!(verdict(&policy, "x.a.example.com"), allowed_below(&[0, 2], 1));
    assert_eq!(verdict(&policy, "b.example.com"), allowed(&[0, 3]));
}

/// A figure in time is a bench, not a test: this prints it and checks the verdicts.
#[test]
fn b13_ten_thousand_rules() {
    let names: Vec<String> = (0..10_000).map(|n| format!("*.host{n}.zone{}.example.com:443", n % 97)).collect();
    let begin = Instant::now();
    let policy = Policy::from_toml(&format!("[allow]\nnames = {names:?}")).unwrap();
    println!("load: {:?}", begin.elapsed());
    let begin = Instant::now();
    let table = NameTable::new(&policy);
    println!("build: {:?}", begin.elapsed());
    let questions: Vec<String> = (0..10_000).map(|n| format!("x.host{n}.zone{}.example.com", n % 97)).collect();
    let questions: Vec<Vec<&[u8]>> = questions.iter().map(|name| labels(name)).collect();
    let begin = Instant::now();
    for (index, question) in questions.iter().enumerate() {
        assert_eq!(table.verdict(question), allowed_below(&[index], 1));
    }
    println!("lookup: {:?} each", begin.elapsed() / 10_000);
}
