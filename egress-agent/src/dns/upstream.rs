//! The upstreams together: who is asked when, and whose word counts.

use super::{
    config::DnsError,
    exchange::{Upstream, UpstreamError},
    name::Name,
};
use crate::policy;
use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// How often a server that was found slow or failing is tried again.
const PROBE: Duration = Duration::from_secs(5);

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

/// The configured upstreams in order of preference. Who failed while another answered is asked last, so a dead first server
/// costs its delay once, not at every query; from time to time it gets a question beside the one that counts, and who
/// answers that in time is back in its place.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<Arc<Server>>,
    schedule: Schedule,
}

#[derive(Debug)]
struct Server {
    upstream: Upstream,
    /// When to try it again, where it was found failing.
    probe_at: Mutex<Option<Instant>>,
}

impl Server {
    fn is_failing(&self) -> bool {
        self.probe_at.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set_failing(&self, failing: bool) {
        let probe_at = failing.then(|| Instant::now() + PROBE);
        *self.probe_at.lock().unwrap_or_else(PoisonError::into_inner) = probe_at;
    }

    /// True once, when it is time for a probe.
    fn takes_probe(&self) -> bool {
        let mut probe_at = self.probe_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = probe_at.is_some_and(|at| now >= at);
        if due {
            *probe_at = Some(now + PROBE);
        }
        due
    }
}

type Attempt<'a> = Pin<Box<dyn Future<Output = (usize, Result<Vec<u8>, UpstreamError>)> + Send + 'a>>;

impl Upstreams {
    pub(super) fn new(servers: &[policy::Server], schedule: Schedule) -> Result<Self, DnsError> {
        let server = |server| Ok(Arc::new(Server { upstream: Upstream::new(server)?, probe_at: Mutex::new(None) }));
        Ok(Self { servers: servers.iter().map(server).collect::<Result<_, DnsError>>()?, schedule })
    }

    /// Nothing was asked for a while.
    pub(super) fn rest(&self) {
        self.servers.iter().for_each(|server| server.upstream.sockets.close());
    }

    /// An answer was sent: there is time for what the next question would have to wait for.
    pub(super) fn tidy(&self) {
        self.servers.iter().for_each(|server| server.upstream.sockets.tidy());
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
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&index| self.servers[index].is_failing());
        for server in self.servers.iter().filter(|server| server.takes_probe()) {
            self.probe(Arc::clone(server), name.clone(), qtype);
        }
        let mut round = Round { order, next: 0 };
        let mut asked: Vec<usize> = Vec::new();
        let start = Instant::now();
        let mut schedule = [self.schedule.race, self.schedule.resend[0], self.schedule.resend[1]]
            .into_iter()
            .skip(usize::from(count == 1))
            .map(|delay| start + delay)
            .peekable();
        let attempt = |index: usize| -> Attempt<'_> {
            let server = &self.servers[index].upstream;
            Box::pin(async move { (index, server.ask(name, qtype).await) })
        };

        let mut turn = |round: &mut Round| -> Option<Attempt<'_>> {
            let index = round.turn()?;
            asked.push(index);
            Some(attempt(index))
        };
        let mut running: Vec<Attempt<'_>> = turn(&mut round).into_iter().collect();
        let mut failure = UpstreamError::Timeout;
        while !running.is_empty() {
            let again = schedule.peek().copied();
            tokio::select! {
                (index, result) = first_of(&mut running) => match result {
                    Ok(reply) => {
                        self.note(&asked, index);
                        return Ok((reply, self.servers[index].upstream.address));
                    }
                    Err(error) => {
                        failure = error;
                        round.remove(index);
                        if round.order.is_empty() {
                            return Err(failure);
                        }
                        if running.len() < round.order.len() {
                            running.extend(turn(&mut round));
                        }
                    }
                },
                () = sleep_until(again.unwrap_or(start)), if again.is_some() => {
                    schedule.next();
                    running.extend(turn(&mut round));
                }
            }
        }
        Err(failure)
    }

    /// Who was asked before the one that answered, and did not, is failing.
    fn note(&self, asked: &[usize], answered: usize) {
        for &index in asked.iter().take_while(|&&index| index != answered) {
            self.servers[index].set_failing(true);
        }
        self.servers[answered].set_failing(false);
    }

    fn probe(&self, server: Arc<Server>, name: Name, qtype: u16) {
        let patience = self.schedule.race;
        tokio::spawn(async move {
            if timeout(patience, server.upstream.ask(&name, qtype)).await.is_ok_and(|answer| answer.is_ok()) {
                server.set_failing(false);
            }
        });
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
