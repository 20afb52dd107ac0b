//! A timer that is due soon, while questions go upstream.
//!
//! Every question sets timers, which hardly ever run out. tokio wakes its own thread for a timer that is due before all others
//! (`Handle::reregister` in runtime/time/mod.rs): a write and a poll each, a tenth of what a question costs. Beside one that
//! is always due before, they cost nothing.

use super::{responder::Responder, serve::Alarm};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

/// Below every delay of an exchange.
const BEAT: Duration = Duration::from_millis(50);
/// Beats without a question after which nobody is waiting any more.
const LAST: u32 = 20;

/// Beats or not.
#[derive(Debug, Default)]
pub(super) struct Beat {
    beats: AtomicBool,
    asked: AtomicBool,
}

impl Responder {
    /// Somebody asks.
    pub(super) fn beat(self: &Arc<Self>) {
        self.beat.asked.store(true, Ordering::Relaxed);
        if self.beat.beats.swap(true, Ordering::Relaxed) {
            return;
        }
        let alarm = Alarm(Arc::clone(self));
        tokio::spawn(async move {
            let beat = &alarm.0.beat;
            while beat.asked.swap(false, Ordering::Relaxed) {
                for _ in 0..LAST {
                    sleep(BEAT).await;
                }
            }
            alarm.0.current().upstreams.rest();
            beat.beats.store(false, Ordering::Relaxed);
        });
    }
}
