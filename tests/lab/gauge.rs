//! Sinks that count: when how many bytes came to a port, and servers that send as fast as they can.

#![expect(clippy::cast_precision_loss, reason = "bytes of a test are far below 2^52")]

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    Lab,
    netns::Netns,
    wait::{Stop, until},
};

/// What came to one port, by whatever way.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<Mutex<Vec<(Instant, u64)>>>);

impl Lab {
    /// Counts what comes to a port of the sink by TCP and by UDP, IPv4 and IPv6.
    pub fn gauge(&self, port: u16) -> Gauge {
        self.gauge_in(self.sink_ns(), port)
    }

    /// The same in another namespace of the lab.
    pub fn gauge_in(&self, netns: &Netns, port: u16) -> Gauge {
        Gauge::start(netns, port, &self.stop)
    }

    /// Whoever connects to this port of the sink gets bytes for as long as he takes them.
    pub fn source(&self, port: u16) {
        let listener = self.sink_ns().enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a source"));
        let stop = self.stop.clone();
        std::thread::spawn(move || {
            while stop.wait(&[listener.as_fd()]) {
                let Ok((stream, _)) = listener.accept() else { continue };
                std::thread::spawn(move || pour(stream));
            }
        });
    }
}

fn pour(mut stream: TcpStream) {
    // A lab that ends takes its network along, and no peer says so.
    let _patience = stream.set_write_timeout(Some(Duration::from_secs(2)));
    let bytes = vec![b'x'; 65536];
    while stream.write_all(&bytes).is_ok() {}
}

impl Gauge {
    fn start(netns: &Netns, port: u16, stop: &Stop) -> Self {
        let gauge = Self::default();
        let (listener, socket) = netns.enter(|| {
            let at = (Ipv6Addr::UNSPECIFIED, port);
            (TcpListener::bind(at).expect("a TCP gauge"), UdpSocket::bind(at).expect("a UDP gauge"))
        });
        let (counting, until) = (gauge.clone(), stop.clone());
        std::thread::spawn(move || {
            while until.wait(&[listener.as_fd()]) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                let (counting, until) = (counting.clone(), until.clone());
                std::thread::spawn(move || {
                    counting.count(&until, &stream.as_fd().try_clone_to_owned().expect("dup"), |chunk| {
                        stream.read(chunk).ok().filter(|count| *count > 0)
                    });
                });
            }
        });
        let (counting, until) = (gauge.clone(), stop.clone());
        let fd = socket.as_fd().try_clone_to_owned().expect("dup");
        std::thread::spawn(move || counting.count(&until, &fd, |chunk| socket.recv(chunk).ok()));
        gauge
    }

    fn count(&self, stop: &Stop, fd: &impl AsFd, mut take: impl FnMut(&mut [u8]) -> Option<usize>) {
        let mut chunk = vec![0; 1 << 18];
        while stop.wait(&[fd.as_fd()]) {
            let Some(count) = take(&mut chunk) else { return };
            self.0.lock().expect("counts").push((Instant::now(), count as u64));
        }
    }

    /// All bytes so far.
    pub fn total(&self) -> u64 {
        self.0.lock().expect("counts").iter().map(|(_, count)| count).sum()
    }

    /// Bits per second from `from` after the first byte to the last one; 0 where that is one moment.
    pub fn rate(&self, from: Duration) -> f64 {
        let counts = self.0.lock().expect("counts");
        let Some((first, _)) = counts.first() else { return 0.0 };
        let after: Vec<_> = counts.iter().filter(|(at, _)| at.duration_since(*first) >= from).collect();
        let (Some((began, _)), Some((ended, _))) = (after.first(), after.last()) else { return 0.0 };
        // What came with the first of them came before.
        let bytes: u64 = after.iter().skip(1).map(|(_, count)| count).sum();
        let seconds = ended.duration_since(*began).as_secs_f64();
        if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 }
    }

    /// Bytes in the time from the first byte on.
    pub fn within(&self, time: Duration) -> u64 {
        let counts = self.0.lock().expect("counts");
        let Some((first, _)) = counts.first() else { return 0 };
        counts.iter().filter(|(at, _)| at.duration_since(*first) < time).map(|(_, count)| count).sum()
    }

    /// Bytes by slices of time from the first byte on.
    pub fn slices(&self, slice: Duration) -> Vec<u64> {
        let counts = self.0.lock().expect("counts");
        let mut slices = Vec::new();
        for (at, count) in counts.iter() {
            let index = (at.duration_since(counts[0].0).as_nanos() / slice.as_nanos()) as usize;
            slices.resize(slices.len().max(index + 1), 0);
            slices[index] += count;
        }
        slices
    }

    /// Waits until nothing comes any more: what still stands in a queue is of who sent before.
    #[track_caller]
    pub fn quiet(&self) {
        let (mut last, mut since) = (self.total(), Instant::now());
        until(Duration::from_secs(60), "nothing comes any more", || {
            let total = self.total();
            if total != last {
                (last, since) = (total, Instant::now());
            }
            since.elapsed() > Duration::from_millis(300)
        });
    }

    /// Forgets what came.
    pub fn reset(&self) {
        self.0.lock().expect("counts").clear();
    }
}
