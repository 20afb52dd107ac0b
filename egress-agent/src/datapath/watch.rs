//! A thread that calls back when the kernel announces a change.

use super::netlink::NetlinkError;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    io,
    ops::ControlFlow,
    os::fd::AsFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// After this many announcements the reader looks at the table anyhow, so that a flood delays no change for ever.
const DRAIN_AT_MOST: usize = 1024;

/// A socket that hears the announcements of some rtnetlink groups in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Subscription(Socket);

impl Subscription {
    /// Joins `groups` (`RTNLGRP_*`) in the calling thread's network namespace.
    pub(super) fn open(groups: &[u32]) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { protocol: NETLINK_ROUTE, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(open)?;
        for group in groups {
            socket.add_membership(*group).map_err(open)?;
        }
        socket.set_non_blocking(true).map_err(open)?;
        Ok(Self(socket))
    }

    /// Takes what is queued. What it says does not matter: the table is read afresh, which also heals an overflow
    /// (ENOBUFS) and makes forged announcements harmless.
    fn drain(&self) -> io::Result<()> {
        let mut byte = [0_u8; 1];
        for _ in 0..DRAIN_AT_MOST {
            match self.0.recv(&mut byte.as_mut_slice(), 0) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    Some(libc::ENOBUFS | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// The thread; dropping it ends and joins it.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Calls `changed` after each burst of announcements, until it breaks or the watcher is dropped. An error is the last
    /// call.
    pub(super) fn spawn(
        subscriptions: Vec<Subscription>,
        mut changed: impl FnMut(Result<(), NetlinkError>) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Self, NetlinkError> {
        let watch = |errno: Errno| NetlinkError::Watch(errno.into());
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(watch)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("netlink-watch".into())
            .spawn(move || {
                loop {
                    let heard = match wait(&stopped, &subscriptions) {
                        Ok(false) => return,
                        Ok(true) => Ok(()),
                        Err(source) => Err(NetlinkError::Watch(source)),
                    };
                    let last = heard.is_err();
                    if changed(heard).is_break() || last {
                        return;
                    }
                }
            })
            .map_err(NetlinkError::Watch)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// True after an announcement, false when the watcher is to end.
fn wait(stop: &EventFd, subscriptions: &[Subscription]) -> io::Result<bool> {
    let mut ready = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    ready.extend(subscriptions.iter().map(|subscription| PollFd::new(subscription.0.as_fd(), PollFlags::POLLIN)));
    while let Err(errno) = poll(&mut ready, PollTimeout::NONE) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    let mut ready = ready.into_iter().map(|fd| fd.any().unwrap_or(true));
    if ready.next().unwrap_or(true) {
        return Ok(false);
    }
    for (subscription, _) in subscriptions.iter().zip(ready).filter(|(_, ready)| *ready) {
        subscription.drain()?;
    }
    Ok(true)
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An eventfd refuses a write only when it is full, which wakes the thread as well.
        self.stop.write(1).ok();
        let Some(thread) = self.thread.take() else { return };
        // The callback itself may drop its watcher; nobody can join himself.
        if thread.thread().id() != thread::current().id() {
            // A panic of the callback was printed by its hook and must not become a second one here.
            drop(thread.join());
        }
    }
}
