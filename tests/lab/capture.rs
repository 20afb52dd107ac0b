//! The packet capture at the sink's end of the wire. Tests of a deny assert on frames here, not on what anyone says.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};

use crate::{
    frame::Frame,
    netns::Netns,
    wait::{Stop, until},
};

const ETH_P_ALL: u16 = 3;
const MARKER: &[u8] = b"lab-marker-";
/// The discard port (RFC 863): whoever gets a marker there stays silent.
const DISCARD: u16 = 9;

/// Frames that arrive on a device, in order.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<Vec<Frame>>>,
    socket: Arc<OwnedFd>,
    markers: AtomicU64,
    from: Netns,
    to: Ipv4Addr,
}

impl Capture {
    /// Starts to capture on `device` of `netns`. What is sent in `from` to the address `to` arrives there.
    pub(crate) fn start(netns: &Netns, device: &str, (from, to): (&Netns, Ipv4Addr), stop: Stop) -> Self {
        let socket = netns.enter(|| open(device).unwrap_or_else(|error| panic!("packet socket on {device}: {error}")));
        // Forced, because the default holds only some hundred frames while the reading thread waits for a CPU.
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("SO_RCVBUFFORCE");
        let (socket, seen) = (Arc::new(socket), Arc::new(Mutex::new(Vec::new())));
        let (reading, kept) = (Arc::clone(&socket), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while stop.wait(&[reading.as_fd()]) {
                if let Ok(Some(frame)) = receive(&reading, &mut buffer) {
                    kept.lock().expect("frames").push(frame);
                }
            }
        });
        Self { seen, socket, markers: AtomicU64::new(0), from: from.clone(), to }
    }

    /// Every frame so far, in order of arrival, without the link's housekeeping. Before it returns, a marker sent on
    /// each CPU has gone the whole way and been captured: no earlier frame is still under way, and a capture that sees
    /// nothing is not mistaken for a wire without traffic.
    #[track_caller]
    pub fn frames(&self) -> Vec<Frame> {
        self.all().into_iter().filter(|frame| !frame.is_housekeeping()).collect()
    }

    /// Those that `frames` leaves out.
    #[track_caller]
    pub fn housekeeping(&self) -> Vec<Frame> {
        self.all().into_iter().filter(Frame::is_housekeeping).collect()
    }

    #[track_caller]
    fn all(&self) -> Vec<Frame> {
        // Twice, because a frame that waits in a CPU's queue for the bridge is queued once more behind it.
        for _ in 0..2 {
            self.mark();
        }
        assert_eq!(dropped(&self.socket), 0, "the capture lost frames");
        let seen = self.seen.lock().expect("frames");
        seen.iter().filter(|frame| !frame.payload.starts_with(MARKER)).cloned().collect()
    }

    fn mark(&self) {
        let first = self.markers.fetch_add(1, Ordering::Relaxed);
        let sent = self.from.enter(|| {
            let here = sched_getaffinity(Pid::from_raw(0)).expect("affinity");
            let cpus = (0..CpuSet::count()).filter(|cpu| here.is_set(*cpu).unwrap_or(false));
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a marker socket");
            let mut sent = Vec::new();
            for cpu in cpus {
                let mut one = CpuSet::new();
                one.set(cpu).expect("a CPU");
                sched_setaffinity(Pid::from_raw(0), &one).expect("moving to a CPU");
                let marker = [MARKER, format!("{first}-{cpu};").as_bytes()].concat();
                socket.send_to(&marker, (self.to, DISCARD)).expect("sending a marker");
                sent.push(marker);
            }
            sent
        });
        until(Duration::from_secs(5), "the capture sees its marker", || {
            let seen = self.seen.lock().expect("frames");
            sent.iter().all(|marker| seen.iter().rev().any(|frame| frame.payload == *marker))
        });
    }
}

fn open(device: &str) -> io::Result<OwnedFd> {
    // SAFETY: three integers in, a new descriptor or -1 out.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made by the call above and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let index = nix::net::if_::if_nametoindex(device)?;
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ETH_P_ALL.to_be();
    address.sll_ifindex = index.cast_signed();
    let length = size_of_val(&address) as u32;
    // SAFETY: the pointer and the length describe `address`, which lives until the call returns.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The next frame that arrived; `None` for one that this end sent itself.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Frame>> {
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&from) as u32;
    // SAFETY: buffer and address are described by their own lengths and live until the call returns.
    let count = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    if from.sll_pkttype == libc::PACKET_OUTGOING {
        return Ok(None);
    }
    Ok(Some(Frame::parse(&buffer[..count.min(buffer.len())], count)))
}

/// How many frames the kernel dropped since the last call because the socket's buffer was full (packet(7)).
fn dropped(socket: &OwnedFd) -> u32 {
    let mut statistics = [0_u32; 2];
    let mut length = size_of_val(&statistics) as u32;
    // SAFETY: the pointer and the length describe `statistics`, which has the layout of struct tpacket_stats.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "PACKET_STATISTICS: {}", io::Error::last_os_error());
    statistics[1]
}
