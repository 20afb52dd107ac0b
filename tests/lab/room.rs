//! Who may run beside whom. A lab that measures is alone among those of its process: others would take the CPU from what it measures.

use std::{
    cell::Cell,
    fs,
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

use crate::wait::patient;

/// Of the time of all CPUs, what has to be left over while something is measured.
const SPARE: f64 = 0.1;

#[derive(Debug)]
struct Room {
    labs: usize,
    /// Labs that want it for themselves, or have it.
    alone: usize,
    taken: bool,
}

static ROOM: Mutex<Room> = Mutex::new(Room { labs: 0, alone: 0, taken: false });
static LEFT: Condvar = Condvar::new();

thread_local! {
    /// A test that has a lab gets another one, whoever waits.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// A lab's place among the others, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    alone: bool,
}

impl Place {
    pub(crate) fn among_others() -> Self {
        let room = ROOM.lock().expect("the room");
        let mut room = LEFT.wait_while(room, |room| OWN.get() == 0 && room.alone > 0).expect("the room");
        room.labs += 1;
        OWN.set(OWN.get() + 1);
        Self { alone: false }
    }

    pub(crate) fn alone() -> Self {
        let mut room = ROOM.lock().expect("the room");
        room.alone += 1;
        let mut room = LEFT.wait_while(room, |room| room.taken || room.labs > 0).expect("the room");
        room.taken = true;
        Self { alone: true }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that failed while it held this lock would have failed here first.
        let Ok(mut room) = ROOM.lock() else { return };
        if self.alone {
            (room.alone, room.taken) = (room.alone - 1, false);
        } else {
            room.labs -= 1;
            OWN.set(OWN.get().saturating_sub(1));
        }
        LEFT.notify_all();
    }
}

/// What was measured while the CPUs had time left: without, a measurement tells of the machine, whatever came out. On a machine that
/// is busy for longer than that, the last one.
#[track_caller]
pub fn undisturbed<T>(what: &str, mut measure: impl FnMut() -> T) -> T {
    let end = Instant::now() + patient(Duration::from_secs(30));
    loop {
        let before = cpu_time();
        let measured = measure();
        let after = cpu_time();
        let spare = (after.0 - before.0) / (after.1 - before.1);
        if spare >= SPARE || Instant::now() > end {
            return measured;
        }
        println!("{what}: measured with {:.0} % of the CPUs' time left, so again", spare * 100.0);
    }
}

/// What was left and all of it, in ticks of all CPUs (proc_stat(5)).
fn cpu_time() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let words = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let ticks: Vec<f64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
    assert_eq!(ticks.len(), 8, "{stat}");
    (ticks[3] + ticks[4], ticks.iter().sum())
}
