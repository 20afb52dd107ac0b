//! The clients, each with its own resolver code, and what they were told: one sandbox, all clients in it, every name asked
//! once, and the tests look at the result.

use hickory_proto::{op::Message, rr::RecordType};
use lab::{Frame, Inside, Lab, Launch, PYTHON, Query, need};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The clients and the words that start them; names follow.
const CLIENTS: [(&str, &str); 9] = [
    ("glibc", "PROBES/resolve-glibc"),
    ("musl", "PROBES/resolve-musl"),
    ("cares", "PROBES/resolve-cares"),
    ("go", "PROBES/resolve-go"),
    ("busybox", "sh PROBES/resolve.sh busybox"),
    ("dig", "sh PROBES/resolve.sh dig"),
    ("python", "PYTHON -I PROBES/resolve.py"),
    ("node", "node PROBES/resolve.js"),
    // Java without its optimising compilers starts sooner.
    ("java", "java -XX:TieredStopAtLevel=1 -Xshare:auto -cp PROBES Resolve"),
];

/// The clients' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CLIENTS.iter().map(|(name, _)| *name)
}

/// What a client was told about a name.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) took: Duration,
    pub(super) addresses: Vec<IpAddr>,
    /// Its own word for it, where it failed.
    pub(super) error: Option<String>,
}

impl Told {
    fn read(line: &str) -> Option<(String, Self)> {
        let mut words = line.split_whitespace();
        let (name, took_us) = (words.next()?, words.next()?.parse().ok()?);
        let rest: Vec<_> = words.collect();
        let addresses = rest.iter().filter_map(|word| word.parse().ok()).collect();
        let error = rest.first().filter(|word| word.starts_with('!')).map(|_| rest.join(" "));
        Some((name.to_owned(), Self { took: Duration::from_micros(took_us), addresses, error }))
    }
}

/// What came of a run.
pub(super) struct Matrix {
    told: BTreeMap<(String, String), Told>,
    /// What the upstream was asked.
    pub(super) queries: Vec<Query>,
    /// Name and type of each datagram from a client to egressd.
    pub(super) asked: Vec<(String, RecordType)>,
}

impl Matrix {
    /// Starts `launch` and asks for every name of `of(client)` by every client.
    pub(super) fn of(lab: &Lab, launch: Launch<'_>, of: impl Fn(&str) -> Vec<String>) -> Self {
        ["node", "java", "busybox", "dig"].into_iter().for_each(need);
        for program in ["resolve-glibc", "resolve-musl", "resolve-cares", "resolve-go", "Resolve.class"] {
            lab.compiled(program);
        }
        for script in ["resolve.py", "resolve.js", "resolve.sh"] {
            lab.probe(script);
        }
        let loopback = lab.loopback();
        let mut inside = Inside::start(launch);
        let probes = lab.directory().display().to_string();
        let begun = CLIENTS.map(|(client, words)| {
            let words = words.replace("PROBES", &probes).replace("PYTHON", PYTHON);
            // The first look-up of a process loads what the later ones need.
            (client, inside.begin(&format!("{words} localhost {}", of(client).join(" "))))
        });
        let mut told = BTreeMap::new();
        for (client, id) in begun {
            let output = inside.answer(id);
            output.exits(0);
            let lines = output.stdout.lines().filter_map(Told::read);
            told.extend(lines.map(|(name, one)| ((client.to_owned(), name), one)));
        }
        let asked = questions(&loopback.frames());
        inside.end().exits(0);
        Self { told, queries: lab.zone().queries(), asked }
    }

    #[track_caller]
    pub(super) fn told(&self, client: &str, name: &str) -> &Told {
        let told = self.told.get(&(client.to_owned(), name.to_owned()));
        told.unwrap_or_else(|| panic!("{client} said nothing of {name}: {:#?}", self.told))
    }

    /// Panics unless the client found all of `expected`, and these alone.
    #[track_caller]
    pub(super) fn expect(&self, client: &str, name: &str, expected: &[&str]) {
        let told = self.told(client, name);
        let mut found = told.addresses.clone();
        found.sort();
        let mut expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        expected.sort();
        assert_eq!(found, expected, "{client} {name}: {told:?}");
    }

    /// The quickest of some look-ups: a machine with other work is slow now and then, a client that waits is so always.
    #[track_caller]
    pub(super) fn quickest(&self, client: &str, names: impl IntoIterator<Item = String>) -> Duration {
        names.into_iter().map(|name| self.told(client, &name).took).min().unwrap()
    }

    /// The questions of the clients about a name, or about one that begins with it.
    pub(super) fn asked(&self, start: &str) -> Vec<&(String, RecordType)> {
        self.asked.iter().filter(|(name, _)| name.starts_with(start)).collect()
    }
}

/// What clients asked egressd in these frames of the loopback device.
pub(super) fn questions(frames: &[Frame]) -> Vec<(String, RecordType)> {
    frames.iter().filter_map(question).collect()
}

/// The question of a datagram to egressd's listener, whose port is below 1024.
fn question(frame: &Frame) -> Option<(String, RecordType)> {
    if frame.protocol != 17 || frame.dst_port >= 1024 || frame.src_port < 1024 {
        return None;
    }
    let message = Message::from_vec(&frame.payload).ok()?;
    let query = message.queries.first()?;
    Some((query.name().to_ascii().to_lowercase(), query.query_type()))
}
