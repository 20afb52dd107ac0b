//! Who follows the devices of a living sandbox: those that come later are put under the verdict, and the record tells.

use super::{Directories, devices::Devices, error::Error, plan::Plan, record::Record, target::Opened};
use crate::{
    datapath::{
        device::{Device, DeviceError, DeviceWatch, Found, Uncovered},
        state_dir::StateDir,
    },
    level::{Level, Reached},
};
use std::sync::{Arc, Mutex, PoisonError};

/// What follows the devices of a sandbox, on the thread of a [`DeviceWatch`].
pub(super) struct Following {
    pub(super) devices: Arc<Mutex<Devices>>,
    pub(super) record: Arc<Mutex<Record>>,
    pub(super) plan: Plan,
    pub(super) privileged: bool,
    pub(super) directories: Directories,
    pub(super) last: Option<Found>,
}

impl Following {
    /// Starts to follow; the caller holds the lock of the state directory. `None` where egressd's namespace is the sandbox's.
    pub(super) fn start(mut self) -> Result<Option<DeviceWatch>, Error> {
        if !self.plan.has_namespace() {
            return Ok(None);
        }
        let sandbox = self.plan.netns.try_clone()?;
        let mut callers_turn = true;
        let changed = move |found: Result<Found, DeviceError>| {
            let callers = std::mem::take(&mut callers_turn);
            let taken = match &found {
                Ok(found) if self.is_old(found) => return,
                _ if callers => self.take(found),
                _ => self.take_in_turn(found),
            };
            if let Err(error) = taken {
                tracing::error!(%error, "the devices of the sandbox are not as they should be");
            }
        };
        Ok(Some(DeviceWatch::start(&sandbox, changed)?))
    }

    /// True where what was found is what was there before. It is remembered.
    fn is_old(&mut self, found: &Found) -> bool {
        let same = self.last.as_ref() == Some(found);
        self.last = Some(found.clone());
        same && self.devices.lock().unwrap_or_else(PoisonError::into_inner).is_settled(found)
    }

    /// Whoever takes the sandbox down would miss what is made meanwhile.
    fn take_in_turn(&self, found: Result<Found, DeviceError>) -> Result<(), Error> {
        let turn = StateDir::open(&self.directories.state)?.lock()?;
        if self.record().is_taken_down(&self.directories) {
            if Record::all(&self.directories)?.is_empty() {
                turn.remove()?;
            }
            return Ok(());
        }
        self.take(found)
    }

    fn take(&self, found: Result<Found, DeviceError>) -> Result<(), Error> {
        let (lines, level) = match found {
            Ok(found) => {
                let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
                let failed = devices.settle(&found);
                let lines = devices.lines();
                drop(devices);
                (lines, self.level(found, failed)?)
            }
            Err(error) => {
                let missing = vec![format!("for L2: its devices cannot be followed: {error}")];
                let lines = self.record().devices.clone();
                (lines, Reached { level: Some(Level::L1), text: Level::L1.to_string(), missing })
            }
        };
        let mut record = self.record();
        if record.devices == lines && record.level == level {
            return Ok(());
        }
        (record.devices, record.level) = (lines, level);
        record.write(&self.directories)
    }

    fn level(&self, mut found: Found, failed: Vec<(Device, Error)>) -> Result<Reached, Error> {
        for (device, error) in failed {
            tracing::warn!(%error, device = device.name, "a device is not enforced");
            found.devices.retain(|other| other.ifindex != device.ifindex);
            found.uncovered.push(Uncovered { name: device.name, kind: format!("not enforced: {error}") });
        }
        let level = self.plan.level(self.privileged, &found);
        let target = self.record().target.clone();
        match Opened::again(&target)? {
            Some(Opened::Cgroup(cgroup)) => {
                level.with_processes(&cgroup, self.plan.judges_foreign, found.devices.is_empty(), false)
            }
            _ => Ok(level),
        }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
