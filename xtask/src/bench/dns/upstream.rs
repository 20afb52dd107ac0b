//! The scripted upstream: one thread in the side's namespace, the same for all.

use super::messages;
use lab::Netns;
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Where it listens. Not 53, which is the resolvers'.
pub(super) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 5300);

/// Serves until it is dropped.
pub(super) struct Upstream {
    ends: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(super) fn start(netns: &Netns) -> io::Result<Self> {
        let socket = netns.enter(|| UdpSocket::bind(ADDRESS))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let thread = std::thread::spawn(move || {
            let (mut query, mut answer) = ([0; 1500], Vec::with_capacity(1500));
            while !told.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                if messages::answer(query.get(..length).unwrap_or_default(), &mut answer).is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                    // Whoever asked may be gone.
                    let _gone = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { ends, asked, thread: Some(thread) })
    }

    /// Questions so far.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
