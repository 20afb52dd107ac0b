//! What there is of egressd's in a lab: compared before and after, it shows what a run left.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{Lab, ground::mounts_below, netns::Netns, wait::until};

/// Kernel objects, files and devices of a lab, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub(crate) fn of(lab: &Lab) -> Self {
        crate::need("bpftool");
        crate::need("tc");
        let mut lines = BTreeSet::new();
        for cgroup in lab.cgroup().below() {
            lines.insert(format!("cgroup {}", cgroup.display()));
        }
        attached(lab, &mut lines);
        for mount in mounts_below(lab.directory()) {
            lines.insert(format!("mount {}", mount.display()));
        }
        for directory in [lab.state_dir(), lab.pin_dir()] {
            files(&directory, &mut lines);
        }
        for (name, netns) in lab.namespaces() {
            devices(name, netns, &mut lines);
        }
        Self(lines)
    }

    /// What `later` has more or less than `self`, one line each with `+` or `-`.
    pub fn diff(&self, later: &Self) -> Vec<String> {
        let more = later.0.difference(&self.0).map(|line| format!("+ {line}"));
        more.chain(self.0.difference(&later.0).map(|line| format!("- {line}"))).collect()
    }

    /// The lines that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|line| line.contains(text)).collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Programs and links on the lab's cgroups. The machine may run other labs: only what hangs on this one's is told.
fn attached(lab: &Lab, lines: &mut BTreeSet<String>) {
    let shown = json(lab.box_ns(), &format!("bpftool -j cgroup tree {}", lab.cgroup().path().display()));
    for cgroup in shown.as_array().into_iter().flatten() {
        let path = cgroup["cgroup"].as_str().unwrap_or_default();
        for program in cgroup["programs"].as_array().into_iter().flatten() {
            lines.insert(format!("program {} {} {} on {path}", program["id"], program["attach_type"], program["name"]));
        }
    }
    let ids: BTreeSet<_> = lab.cgroup().below().iter().filter_map(|path| inode(path)).collect();
    let links = json(lab.box_ns(), "bpftool -j link show");
    for link in links.as_array().into_iter().flatten() {
        if link["cgroup_id"].as_u64().is_some_and(|id| ids.contains(&id)) {
            lines.insert(format!("link {} {} program {}", link["id"], link["attach_type"], link["prog_id"]));
        }
    }
}

/// Addresses, queueing disciplines, filters, tcx programs and packet filter rules of a namespace.
fn devices(name: &str, netns: &Netns, lines: &mut BTreeSet<String>) {
    let commands = [
        // Without the state, which the kernel sets some time after what it follows from (net/core/link_watch.c).
        r"ip -br addr | sed -E 's/^([^ ]+) +[A-Z]+/\1/'",
        "ip -br link show up | cut -d' ' -f1",
        "ip route",
        "tc qdisc show",
        "bpftool net show | grep -v '^$'",
        "for d in $(ip -br link | cut -d' ' -f1 | cut -d@ -f1); do tc filter show dev $d ingress; tc filter show dev $d egress; done",
        "nft list ruleset",
    ];
    for line in netns.sh(&commands.join(" && ")).exits(0).stdout.lines() {
        lines.insert(format!("{name}: {}", line.trim()));
    }
}

fn json(netns: &Netns, command: &str) -> Value {
    let mut output = netns.sh(command);
    // bpftool lists by id and gives up where an object of another test goes between two of its questions.
    until(Duration::from_secs(5), "a listing that nothing ends in the middle of", || {
        let whole = output.code == Some(0);
        if !whole {
            output = netns.sh(command);
        }
        whole
    });
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{command}: {error}: {output}"))
}

fn files(directory: &Path, lines: &mut BTreeSet<String>) {
    let mut waiting = vec![PathBuf::from(directory)];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            lines.insert(format!("file {}", entry.path().display()));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).ok().map(|found| found.ino())
}
