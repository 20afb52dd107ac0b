//! C01 to C09: every client, unchanged.

use super::{
    matrix::{Matrix, names},
    resolving,
};
use hickory_proto::rr::RecordType;
use lab::{Entry, Inside, Lab, PYTHON, need, until};
use std::{net::TcpListener, sync::OnceLock, time::Duration};

/// So long may a lookup take that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_millis(50);
const MANY: usize = 3000;
/// The most addresses that one answer holds.
const MOST: usize = 128;

fn three(what: &str, client: &str, zone: &str) -> [String; 3] {
    [1, 2, 3].map(|number| format!("{what}{number}.{client}.{zone}.test"))
}

fn addresses(count: usize, first_octets: &str) -> Vec<String> {
    (0..count).map(|number| format!("{first_octets}.{}.{}", number / 250, number % 250 + 1)).collect()
}

fn entry(addresses: &[String]) -> Entry {
    Entry::at(&addresses.iter().map(String::as_str).collect::<Vec<_>>())
}

/// All that can be asked in one sandbox whose resolv.conf is plain.
fn plain() -> &'static Matrix {
    static RUN: OnceLock<Matrix> = OnceLock::new();
    RUN.get_or_init(|| {
        let lab = Lab::without_capture();
        let zone = lab.zone();
        for client in names() {
            zone.put(&format!("many.{client}.ok.test"), entry(&addresses(45, "198.18")));
            zone.put(&format!("most.{client}.ok.test"), entry(&addresses(MANY, "198.19")));
            zone.put(&format!("chain.{client}.ok.test"), Entry::alias("a.cdn.test"));
            let slow = Entry::at(&["198.51.100.10", lab::OK6]).silent_for(RecordType::AAAA);
            zone.put(&format!("slow.{client}.ok.test"), slow);
        }
        for (name, target) in [("a.cdn.test", "b.cdn.test"), ("b.cdn.test", "c.cdn.test")] {
            zone.put(name, Entry::alias(target));
        }
        zone.put("c.cdn.test", Entry::at(&["198.51.100.11"]));
        let run = resolving(&lab, lab.egressd("run"), "nameserver 203.0.113.8\n");
        Matrix::of(&lab, run.flags("--allow *.ok.test"), |client| {
            let mut names = three("no", client, "denied").to_vec();
            names.extend(["many", "most", "chain", "slow"].map(|what| format!("{what}.{client}.ok.test")));
            names
        })
    })
}

/// A sandbox without IPv6, whose resolv.conf searches as a pod's does.
fn pod() -> &'static Matrix {
    static RUN: OnceLock<Matrix> = OnceLock::new();
    RUN.get_or_init(|| {
        let lab = Lab::without_capture();
        lab.box_ns().sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6").exits(0);
        for client in names() {
            for name in three("dual", client, "ok") {
                lab.zone().put(&name, Entry::at(&["198.51.100.10", lab::OK6]));
            }
            lab.zone().put(&format!("api.{client}.ok.test"), Entry::at(&["198.51.100.10"]));
        }
        let search =
            "nameserver 203.0.113.8\nsearch ns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
        let run = resolving(&lab, lab.egressd("run"), search);
        Matrix::of(&lab, run.flags("--allow *.ok.test"), |client| {
            let mut names = three("dual", client, "ok").map(|name| name + ".").to_vec();
            names.push(format!("api.{client}.ok.test"));
            names
        })
    })
}

#[test]
fn c01_denied_name() {
    let matrix = plain();
    for client in names() {
        for name in three("no", client, "denied") {
            let told = matrix.told(client, &name);
            assert!(told.addresses.is_empty() && told.error.is_some(), "{client} {name}: {told:?}");
            let asked = matrix.asked(&name);
            assert!(!asked.is_empty(), "{client} asked for {name}");
            for kind in [RecordType::A, RecordType::AAAA] {
                let count = asked.iter().filter(|(_, asked)| *asked == kind).count();
                assert!(count <= 2, "{client} asked {count} times: {asked:?}");
            }
        }
        let quickest = matrix.quickest(client, three("no", client, "denied"));
        // A tool is a process more for each question.
        let limit = if ["dig", "busybox"].contains(&client) { AT_ONCE * 10 } else { AT_ONCE };
        assert!(quickest < limit, "{client}: a denial took {quickest:?}");
    }
    assert!(matrix.queries.iter().all(|query| !query.name.contains("denied")), "{:?}", matrix.queries);
}

#[test]
fn c02_both_families_where_ipv6_is_off() {
    let matrix = pod();
    for client in names() {
        let names = three("dual", client, "ok").map(|name| name + ".");
        for name in &names {
            let told = matrix.told(client, name);
            assert!(told.addresses.contains(&lab::OK), "{client} {name}: {told:?}");
        }
        let quickest = matrix.quickest(client, names);
        let limit = if ["dig", "busybox"].contains(&client) { AT_ONCE * 10 } else { AT_ONCE };
        assert!(quickest < limit, "{client}: {quickest:?}");
    }
}

#[test]
fn c03_search_list_of_a_pod() {
    let matrix = pod();
    for client in names() {
        matrix.expect(client, &format!("api.{client}.ok.test"), &["198.51.100.10"]);
        let asked = matrix.asked(&format!("api.{client}.ok.test."));
        assert!(!asked.is_empty() && asked.len() <= 8, "{client}: {asked:?}");
    }
    assert!(matrix.queries.iter().all(|query| !query.name.ends_with("cluster.local")), "{:?}", matrix.queries);
}

#[test]
fn c04_forty_five_addresses() {
    for client in names() {
        let told = plain().told(client, &format!("many.{client}.ok.test"));
        // Neither takes a connection where a datagram was cut short.
        let at_least = if ["musl", "busybox"].contains(&client) { 28 } else { 45 };
        assert!((at_least..=45).contains(&told.addresses.len()), "{client} got {}: {told:?}", told.addresses.len());
        assert!(told.took < Duration::from_secs(2), "{client}: {told:?}");
    }
}

#[test]
fn c05_three_thousand_addresses() {
    for client in names() {
        let told = plain().told(client, &format!("most.{client}.ok.test"));
        assert!((28..=MOST).contains(&told.addresses.len()), "{client} got {}", told.addresses.len());
        assert!(told.took < Duration::from_secs(2), "{client} took {:?}", told.took);
    }
    // The twin at the map: what was answered is what is open.
    let lab = Lab::new();
    let all = addresses(MANY, "198.19");
    lab.zone().put("most.test", entry(&all));
    let mut inside = Inside::start(lab.egressd("run").flags("--pre-resolve=off --allow most.test:9/udp"));
    let found = inside.ask("dig +tcp +short most.test");
    let found: Vec<&str> = found.exits(0).stdout.lines().collect();
    assert_eq!(found.len(), MOST);
    let send = |to: &str| format!("echo x | nc -u -w0 {to} 9");
    let script: Vec<_> = all.iter().step_by(29).chain([&found[0].to_owned()]).map(|to| send(to)).collect();
    inside.ask(&script.join("\n"));
    inside.end();
    let reached: Vec<String> =
        lab.frames().iter().filter(|frame| frame.is_udp(9)).map(|frame| frame.dst.to_string()).collect();
    assert!(reached.iter().any(|to| to == found[0]), "{reached:?}");
    assert!(reached.iter().all(|to| found.contains(&to.as_str())), "{reached:?}");
}

#[test]
fn c06_chain_of_three() {
    for client in names() {
        plain().expect(client, &format!("chain.{client}.ok.test"), &["198.51.100.11"]);
    }
}

#[test]
fn c07_aaaa_upstream_is_silent() {
    for client in names() {
        let told = plain().told(client, &format!("slow.{client}.ok.test"));
        assert_eq!(told.addresses, [lab::OK], "{client}: {told:?}");
        assert!(told.took < Duration::from_secs(1), "{client} took {:?}", told.took);
    }
}

/// Clients as shell commands over a URL.
const HTTP: [(&str, &str); 5] = [
    ("curl", "curl -fsS -m3 URL"),
    ("wget", "wget -q -T3 -t1 -O - URL"),
    ("busybox", "busybox wget -q -T3 -O - URL"),
    ("python", "PYTHON -I -c \"import urllib.request as u; print(u.urlopen('URL', timeout=3).read())\""),
    ("node", "node -e \"fetch('URL').then(r => r.text()).then(console.log, () => process.exit(1))\""),
];

#[test]
fn c09_a_denied_name_never_leads_to_the_sandbox_itself() {
    ["wget", "busybox", "node"].into_iter().for_each(need);
    let lab = Lab::new();
    let own = lab.box_ns().enter(|| TcpListener::bind(("::", 80)).unwrap());
    own.set_nonblocking(true).unwrap();
    let mut inside = Inside::start(lab.egressd("run").flags("--allow ok.test"));
    for (client, words) in HTTP {
        let fetch = |host: &str| words.replace("PYTHON", PYTHON).replace("URL", &format!("http://{host}/"));
        let denied = inside.ask(&fetch("evil.test"));
        assert_ne!(denied.code, Some(0), "{client}: {denied}");
        // The static busybox crashes in its own C library before it connects.
        if client != "busybox" {
            inside.ask(&fetch("ok.test")).exits(0).says("sink");
        }
    }
    assert!(own.accept().is_err(), "a denied name led to the sandbox's own server");
    let control = inside.begin("curl -sS -m3 http://127.0.0.1/");
    until(Duration::from_secs(5), "loopback works", || own.accept().is_ok());
    inside.answer(control);
    inside.end();
    lab.expect_silence(lab::EVIL);
}

/// One start of the browser for everything: a page that it may load, and in it what it may not.
#[test]
fn c01_c09_chromium() {
    need("chromium-headless-shell");
    let lab = Lab::new();
    let own = lab.box_ns().enter(|| TcpListener::bind(("::", 80)).unwrap());
    own.set_nonblocking(true).unwrap();
    let token = lab.token("page");
    // The page has loaded, and is printed, once each image has come or failed.
    let evil = |number| {
        format!(
            "<img src='http://evil.test/{token}-evil-{number}'
                onerror='document.title += \" refused \" + (performance.now() - since < 1000)'>"
        )
    };
    let page = format!(
        "<!doctype html><title></title><script>const since = performance.now()</script>
        <img src='http://a.test/{token}-image'>{}{}",
        evil(1),
        evil(2)
    );
    std::fs::create_dir_all(lab.www_dir()).unwrap();
    std::fs::write(lab.www_dir().join("page.html"), page).unwrap();
    let loopback = lab.loopback();
    let browse = "HOME=$PWD chromium-headless-shell --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run
        --disable-background-networking --disable-component-update --disable-sync --disable-extensions
        --user-data-dir=$PWD/profile --timeout=15000 --dump-dom http://ok.test/www/page.html"
        .replace('\n', " ");
    let output = lab.egressd("run").flags("--allow ok.test --allow a.test").sh(&browse).output();
    output.exits(0).says("<title>refused true refused true</title>");
    lab.expect_hits(&format!("{token}-image"), 1);
    assert!(own.accept().is_err(), "a denied name led to the sandbox's own server");
    lab.expect_silence(lab::EVIL);
    let asked = super::matrix::questions(&loopback.frames());
    for kind in [RecordType::A, RecordType::AAAA] {
        let count = asked.iter().filter(|one| **one == ("evil.test.".to_owned(), kind)).count();
        assert!(count <= 4, "{count} questions for two requests: {asked:?}");
    }
}
