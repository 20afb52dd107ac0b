//! The upstreams together: who is asked when, and whose word counts.

use super::{
    exchange::{Upstream, UpstreamError},
    name::Name,
};
use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout_at};

/// When a question is sent again, counted from its first packet. Every packet has its own socket and id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// A second server is asked too.
    pub(super) race: Duration,
    /// The next server, or the only one again, is asked.
    pub(super) resend: [Duration; 2],
    /// SERVFAIL: below the 5 s at which glibc gives up on silence.
    pub(super) budget: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { race: ms(300), resend: [ms(800), ms(1600)], budget: ms(4000) }
    }
}

/// The configured upstreams in order of preference.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<Upstream>,
    /// The last that answered: a dead first server costs its delay once, not at every query.
    preferred: AtomicUsize,
    schedule: Schedule,
}

type Attempt<'a> = Pin<Box<dyn Future<Output = (usize, Result<Vec<u8>, UpstreamError>)> + Send + 'a>>;

impl Upstreams {
    pub(super) fn new(servers: &[SocketAddr], schedule: Schedule) -> Self {
        Self { servers: servers.iter().copied().map(Upstream::new).collect(), preferred: AtomicUsize::new(0), schedule }
    }

    /// When a query that starts now has to be answered.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.schedule.budget
    }

    /// The first usable reply (NOERROR or NXDOMAIN; the latter is final) and who sent it.
    pub(super) async fn ask(
        &self,
        name: &Name,
        qtype: u16,
        deadline: Instant,
    ) -> Result<(Vec<u8>, SocketAddr), UpstreamError> {
        timeout_at(deadline, self.race(name, qtype)).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    async fn race(&self, name: &Name, qtype: u16) -> Result<(Vec<u8>, SocketAddr), UpstreamError> {
        let count = self.servers.len();
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut round = Round { order: (0..count).map(|index| (preferred + index) % count).collect(), next: 0 };
        let start = Instant::now();
        let mut schedule = [self.schedule.race, self.schedule.resend[0], self.schedule.resend[1]]
            .into_iter()
            .skip(usize::from(count == 1))
            .map(|delay| start + delay)
            .peekable();
        let attempt = |index: usize| -> Attempt<'_> {
            let server = &self.servers[index];
            Box::pin(async move { (index, server.ask(name, qtype).await) })
        };

        let mut running: Vec<Attempt<'_>> = round.turn().map(attempt).into_iter().collect();
        let mut failure = UpstreamError::Timeout;
        while !running.is_empty() {
            let again = schedule.peek().copied();
            tokio::select! {
                (index, result) = first_of(&mut running) => match result {
                    Ok(reply) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok((reply, self.servers[index].address));
                    }
                    Err(error) => {
                        failure = error;
                        round.remove(index);
                        if round.order.is_empty() {
                            return Err(failure);
                        }
                        if running.len() < round.order.len() {
                            running.extend(round.turn().map(attempt));
                        }
                    }
                },
                () = sleep_until(again.unwrap_or(start)), if again.is_some() => {
                    schedule.next();
                    running.extend(round.turn().map(attempt));
                }
            }
        }
        Err(failure)
    }
}

/// Whose turn it is. Who failed is out.
struct Round {
    order: Vec<usize>,
    next: usize,
}

impl Round {
    fn turn(&mut self) -> Option<usize> {
        let index = *self.order.get(self.next % self.order.len().max(1))?;
        self.next += 1;
        Some(index)
    }

    fn remove(&mut self, index: usize) {
        if let Some(place) = self.order.iter().position(|candidate| *candidate == index) {
            self.order.remove(place);
            if place < self.next {
                self.next -= 1;
            }
        }
    }
}

async fn first_of(running: &mut Vec<Attempt<'_>>) -> (usize, Result<Vec<u8>, UpstreamError>) {
    poll_fn(|context| {
        for place in 0..running.len() {
            if let Poll::Ready(outcome) = running[place].as_mut().poll(context) {
                drop(running.swap_remove(place));
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}
