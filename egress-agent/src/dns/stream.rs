//! Connections from clients (RFC 7766): many queries on one, answered as they become ready.

use super::{
    config::DnsError,
    responder::{Peer, Responder, Step, TCP},
    serve::Alarm,
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

/// More wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16;
/// More wait in the connection's receive buffer.
const MAX_OUTSTANDING: usize = 64;
/// A connection without a query and without an answer to come is closed.
const IDLE: Duration = Duration::from_secs(10);
/// A message that has begun must be whole, and an answer must be taken, within this.
const FRAME: Duration = Duration::from_secs(2);
/// Pause while the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Serves connections until the listener fails.
pub(super) async fn connections(responder: Arc<Responder>, socket: TcpListener, listener: SocketAddr) -> DnsError {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return DnsError::Panicked };
        match socket.accept().await {
            Ok((stream, from)) => {
                let alarm = Alarm(Arc::clone(&responder));
                tokio::spawn(async move {
                    let ended = Connection::new(&alarm.0, stream, from).run().await;
                    drop(place);
                    if let Err(error) = ended {
                        tracing::debug!(%from, %error, "a client's DNS connection broke");
                    }
                });
            }
            Err(error) if is_exhausted(&error) => sleep(EXHAUSTED).await,
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(source) => return DnsError::Serve { listener, source },
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

struct Connection<'a> {
    responder: &'a Arc<Responder>,
    stream: TcpStream,
    peer: Peer,
    /// Received and not yet taken: at most one frame and what came behind it.
    input: Vec<u8>,
    tasks: JoinSet<Vec<u8>>,
    open: bool,
}

impl<'a> Connection<'a> {
    fn new(responder: &'a Arc<Responder>, stream: TcpStream, from: SocketAddr) -> Self {
        let peer = Peer { protocol: TCP, port: from.port() };
        Self { responder, stream, peer, input: Vec::new(), tasks: JoinSet::new(), open: true }
    }

    async fn run(mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        let mut deadline = Instant::now() + IDLE;
        loop {
            let mut taken = false;
            while self.tasks.len() < MAX_OUTSTANDING
                && let Some(frame) = self.take_frame()
            {
                if frame.is_empty() {
                    return Ok(());
                }
                self.serve(&frame).await?;
                taken = true;
            }
            if taken {
                deadline = self.deadline();
            }
            if !self.open && self.tasks.is_empty() {
                return Ok(());
            }
            let room = self.open && self.tasks.len() < MAX_OUTSTANDING;
            // Who waits for an answer is not idle, but a message that has begun has to be finished all the same.
            let limited = self.tasks.is_empty() || room && !self.input.is_empty();
            let first = self.input.is_empty();
            tokio::select! {
                received = self.stream.read_buf(&mut self.input), if room => {
                    self.open = received? > 0;
                    if first {
                        deadline = self.deadline();
                    }
                }
                Some(done) = self.tasks.join_next() => {
                    // A panic has raised the alarm already.
                    let answer = done.map_err(io::Error::other)?;
                    self.send(&answer).await?;
                    deadline = self.deadline();
                }
                () = sleep_until(deadline), if limited => return Ok(()),
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + if self.input.is_empty() { IDLE } else { FRAME }
    }

    fn frame_end(&self) -> Option<usize> {
        let (length, rest) = self.input.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        (rest.len() >= length).then_some(2 + length)
    }

    fn take_frame(&mut self) -> Option<Vec<u8>> {
        let end = self.frame_end()?;
        let frame = self.input[2..end].to_vec();
        self.input.drain(..end);
        Some(frame)
    }

    async fn serve(&mut self, message: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(512);
        match self.responder.receive(message, self.peer, &mut out) {
            Step::Silent => Ok(()),
            Step::Answered => self.send(&out).await,
            Step::Ask(miss) => {
                let alarm = Alarm(Arc::clone(self.responder));
                self.tasks.spawn(async move {
                    drop(alarm.0.finish(miss, &mut out).await);
                    out
                });
                Ok(())
            }
        }
    }

    async fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        self.responder.sent(answer.len());
        let mut frame = Vec::with_capacity(2 + answer.len());
        frame.extend((answer.len() as u16).to_be_bytes());
        frame.extend(answer);
        let sent = timeout(FRAME, self.stream.write_all(&frame)).await.map_err(io::Error::from).flatten();
        sent.inspect_err(|_| self.responder.counters.unsent.add(1))
    }
}
