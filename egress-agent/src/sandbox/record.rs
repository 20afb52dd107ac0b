//! What a sandbox leaves in the state directory, for whoever comes later: names for the numbers in the maps. It decides
//! nothing; what is enforced is what the maps hold.

use super::{
    Directories,
    error::Error,
    sent::Since,
    target::{Target, Which},
};
use crate::{
    compile::RuleText,
    datapath::{bpffs::PinRoot, device, netns::Netns, state_dir::StateDir, tables::Tables, tc::Held},
    level::{Level, Reached},
};
use egress_common::permit::RuleRef;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::PathBuf};

/// Name of the record's file in the sandbox's own directory.
const FILE: &str = "sandbox.json";

/// One sandbox.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Unique below one state directory; name of its pins' directory too.
    pub(super) name: String,
    /// What it stands on.
    pub(super) target: Target,
    /// Its place in the maps.
    pub(super) slot: u32,
    /// What the storage of its cgroup, or its device's entry, holds beside that.
    pub(super) nonce: u64,
    /// The policy in force, canonical.
    pub(super) policy: String,
    /// Its number, from 1.
    pub(super) generation: u64,
    /// Rules in force: reference and policy line.
    pub(super) rules: Vec<RuleLine>,
    /// Devices under enforcement.
    pub(super) devices: Vec<DeviceLine>,
    /// Cookie of the network namespace in which they are.
    pub(super) host_netns: u64,
    /// What its devices and hooks reach, as if the devices were its own alone.
    pub(super) level: Reached,
    /// What whoever puts processes into it made of that.
    pub(super) judged: Option<Reached>,
    /// The least that must be promised.
    pub(super) required: Option<Level>,
    /// The process that serves it.
    pub(super) agent_pid: Option<u32>,
    /// Start time of that process, in clock ticks since boot: a pid alone may be somebody else's by now.
    pub(super) agent_start: Option<u64>,
    /// True in a network namespace of its own.
    pub(super) own_netns: bool,
    /// Where that namespace was found, if the caller named it.
    pub(super) netns: Option<PathBuf>,
    /// The name under which its owner left it to whoever comes next.
    pub(super) pinned_as: Option<String>,
    /// Version of the layouts of its maps.
    pub(super) abi: u32,
    /// Tags of rules below this one were used.
    pub(super) next_tag: u32,
}

/// A device under enforcement.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct DeviceLine {
    pub(super) name: String,
    pub(super) ifindex: u32,
    pub(super) held: Held,
    /// Its clsact hooks were made for us, and go with our filters.
    pub(super) made_clsact: bool,
    /// It has a queue for what it receives.
    pub(super) shaped: bool,
}

/// A rule's reference and text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct RuleLine {
    pub(super) index: u32,
    pub(super) tag: u32,
    pub(super) text: RuleText,
    /// What had passed by its index when it came.
    #[serde(default)]
    pub(super) since: Since,
}

impl RuleLine {
    pub(super) fn reference(&self) -> RuleRef {
        RuleRef { index: self.index, tag: self.tag }
    }
}

impl Record {
    /// The directory of one sandbox.
    pub(super) fn directory(directories: &Directories, name: &str) -> PathBuf {
        directories.state.join("sandboxes").join(name)
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self, directories: &Directories) -> Result<(), Error> {
        let directory = Self::directory(directories, &self.name);
        fs::create_dir_all(&directory).map_err(Error::file(&directory, "make"))?;
        let (path, draft) = (directory.join(FILE), directory.join(".sandbox.json"));
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(Error::file(&path, "write"))?;
        fs::write(&draft, text).map_err(Error::file(&draft, "write"))?;
        fs::rename(&draft, &path).map_err(Error::file(&path, "write"))
    }

    /// Removes it with everything beside it; done as well when it is already gone.
    pub(super) fn remove(directories: &Directories, name: &str) -> Result<(), Error> {
        let directory = Self::directory(directories, name);
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut removed = fs::remove_dir_all(&directory);
        // Whoever serves the sandbox may have written a file while the others were removed.
        for _ in 0..3 {
            if removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::DirectoryNotEmpty) {
                removed = fs::remove_dir_all(&directory);
            }
        }
        match removed {
            Err(error) if !gone(&error) => return Err(Error::file(&directory, "remove")(error)),
            _ => {}
        }
        // The last one takes the directory of all with it; another sandbox's keeps it.
        fs::remove_dir(directories.state.join("sandboxes")).ok();
        Ok(())
    }

    /// The record of this name; none while the sandbox is being made or removed.
    pub(super) fn read(directories: &Directories, name: &str) -> Result<Option<Self>, Error> {
        let path = Self::directory(directories, name).join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| Error::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file(&path, "read")(error)),
        }
    }

    /// Every record below a state directory, by name.
    pub(super) fn all(directories: &Directories) -> Result<Vec<Self>, Error> {
        let root = directories.state.join("sandboxes");
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file(&root, "read")(error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::file(&root, "read"))?.file_name();
            records.extend(Self::read(directories, &name.to_string_lossy())?);
        }
        records.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(records)
    }

    /// The record that is meant, or the only one that there is.
    pub(super) fn of(directories: &Directories, which: Option<&Which>) -> Result<Self, Error> {
        let mut all = Self::all(directories)?;
        let Some(asked) = which else {
            return match (all.len(), all.pop()) {
                (1, Some(only)) => Ok(only),
                (count, _) => Err(Error::Ambiguous { count }),
            };
        };
        all.retain(|record| record.target.is(asked));
        // Devices of one name may be in several namespaces, and one may have been made again: this one, then any.
        let here = Netns::current()?.cookie()?;
        let now = |record: &Self| match record.target {
            Target::Cgroup { .. } => true,
            Target::Guest { ifindex, .. } => {
                record.host_netns == here && device::by_index(ifindex).is_ok_and(|found| found.is_some())
            }
        };
        let at = all.iter().position(now).unwrap_or(0);
        all.into_iter().nth(at).ok_or_else(|| Error::NotAttached { which: asked.clone() })
    }

    /// Its maps as they are pinned, and the directory of its pins.
    pub(super) fn open_maps(&self, directories: &Directories) -> Result<(PathBuf, Tables), Error> {
        let state = StateDir::open(&directories.state)?;
        let turn = state.lock()?;
        let root = PinRoot::open(&directories.pin, &turn)?;
        let pins = root.owner_dir(&self.name)?.ok_or_else(|| Error::NotAttached { which: self.target.which() })?;
        let tables = Tables::open(&pins.join("maps"), &directories.listeners())?;
        Ok((pins, tables))
    }

    /// True where nobody serves the sandbox and nobody was to leave it so.
    pub(super) fn is_left(&self) -> bool {
        self.pinned_as.is_none() && self.agent().is_none()
    }

    /// True once somebody detached the sandbox, also where another one is attached to its cgroup by now.
    pub(super) fn is_taken_down(&self, directories: &Directories) -> bool {
        /// Asked for all the time, of a record that may have thousands of rules.
        #[derive(Deserialize)]
        struct Whose {
            nonce: u64,
        }
        let found = fs::read(Self::directory(directories, &self.name).join(FILE)).ok();
        let found = found.and_then(|text| serde_json::from_slice(&text).ok());
        found.is_some_and(|Whose { nonce }| nonce != self.nonce) || !directories.pin.join(&self.name).exists()
    }

    /// The network namespace in which its devices are, if one of those at hand is it: the caller's, PID 1's, or that of the
    /// process that serves the sandbox.
    pub(super) fn find_host_netns(&self) -> Result<Netns, Error> {
        let agent = self.agent().and_then(|pid| i32::try_from(pid).ok());
        let pids = std::iter::once(1).chain(agent).map(|pid| Netns::from_pid(Pid::from_raw(pid)));
        std::iter::once(Netns::current())
            .chain(pids)
            .flatten()
            .find(|netns| netns.cookie().is_ok_and(|cookie| cookie == self.host_netns))
            .ok_or_else(|| Error::HostNetns { name: self.name.clone() })
    }

    /// The record of a sandbox by its own name, or by the one that it was pinned under.
    pub(super) fn named(directories: &Directories, name: &str) -> Result<Self, Error> {
        let known = |record: &Self| record.name == name || record.pinned_as.as_deref() == Some(name);
        Self::all(directories)?.into_iter().find(known).ok_or_else(|| Error::Unknown { name: name.to_owned() })
    }

    /// The process that serves the sandbox, if it lives.
    pub(super) fn agent(&self) -> Option<u32> {
        self.agent_pid.filter(|pid| start_time(*pid).is_some_and(|start| Some(start) == self.agent_start))
    }

    /// What is promised now, as if its devices were its own alone. Devices that come later are judged only while a process serves
    /// the sandbox.
    pub(super) fn promised(&self) -> Reached {
        let mut promised = match &self.judged {
            None => self.level.clone(),
            Some(judged) if judged.level < self.level.level => judged.clone(),
            Some(judged) => {
                let news = self.level.missing.iter().filter(|line| !judged.missing.contains(line));
                let missing = judged.missing.iter().chain(news).cloned().collect();
                Reached { missing, ..self.level.clone() }.minus_those_of(judged)
            }
        };
        if self.own_netns && self.agent().is_none() {
            promised.missing.push(
                "devices that come later are not judged: nobody serves the sandbox, who could put them under the verdict; attach it anew, and without --pin"
                    .to_owned(),
            );
            if promised.level >= Some(Level::L2) {
                promised.text = format!("{}, minus devices that come later", promised.text);
            }
        }
        promised
    }

    /// Notes who serves the sandbox from now on: this process, or nobody.
    pub(super) fn served_by(&mut self, pid: Option<u32>) {
        self.agent_pid = pid;
        self.agent_start = pid.and_then(start_time);
    }

    /// What is known of each rule.
    pub(super) fn texts(&self) -> BTreeMap<RuleRef, RuleText> {
        self.rules.iter().map(|line| (line.reference(), line.text.clone())).collect()
    }

    pub(super) fn rule_text(&self, tag: u32) -> Option<&RuleText> {
        self.rules.iter().find(|line| line.tag == tag).map(|line| &line.text)
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field may hold anything, brackets and blanks included.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}
