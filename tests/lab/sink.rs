//! Servers behind the wire. They take whatever comes on their ports, at every sink address, write down what it was and
//! from whom, and answer where it was HTTP.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{netns::Netns, wait::Stop};

/// TCP ports with a server that speaks HTTP to whoever does, and otherwise only writes down.
pub const TCP_PORTS: [u16; 8] = [22, 25, 80, 853, 3000, 5432, 8000, 8080];

/// UDP ports that take datagrams without an answer, so that clients get no "port unreachable".
pub const UDP_PORTS: [u16; 7] = [9, 123, 443, 853, 5000, 5353, 5355];

/// The most of one request that is kept.
const KEPT: usize = 4 << 20;

/// One request, or one connection that sent none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Who opened the connection.
    pub src: SocketAddr,
    /// The sink address and port that it came to.
    pub dst: SocketAddr,
    /// The server name of its TLS ClientHello, where it was TLS.
    pub sni: Option<String>,
    /// What it sent: for HTTP the request with its body, otherwise all until it closed.
    pub bytes: Vec<u8>,
}

impl Hit {
    /// True where it sent `token`.
    pub fn carries(&self, token: &str) -> bool {
        self.bytes.windows(token.len().max(1)).any(|window| window == token.as_bytes())
    }

    /// The request line, or as much of the first line as there is.
    pub fn request(&self) -> String {
        let end = self.bytes.iter().position(|byte| *byte == b'\r').unwrap_or(self.bytes.len());
        String::from_utf8_lossy(&self.bytes[..end]).into_owned()
    }

    /// The body of an HTTP request.
    pub fn body(&self) -> &[u8] {
        head_length(&self.bytes).map_or(&[], |head| &self.bytes[head..])
    }
}

/// What the servers have written down, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hits(Arc<Mutex<Vec<Hit>>>);

impl Hits {
    pub(crate) fn push(&self, hit: Hit) {
        self.0.lock().expect("hits").push(hit);
    }

    pub(crate) fn all(&self) -> Vec<Hit> {
        self.0.lock().expect("hits").clone()
    }
}

/// Starts the servers in `netns`; below `/www/` they serve what is in `files`.
pub(crate) fn start(netns: &Netns, files: &Path, hits: &Hits, stop: &Stop) {
    let (listeners, sockets) = netns.enter(|| {
        // One dual-stack socket a port; the accepted socket tells which of the sink's addresses was meant.
        let listeners = TCP_PORTS.map(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a TCP sink"));
        (listeners, UDP_PORTS.map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a UDP sink")))
    });
    for listener in listeners {
        let (hits, stop, files) = (hits.clone(), stop.clone(), files.to_owned());
        std::thread::spawn(move || {
            while stop.wait(&[listener.as_fd()]) {
                let Ok((stream, _)) = listener.accept() else { continue };
                let (hits, stop, files) = (hits.clone(), stop.clone(), files.clone());
                std::thread::spawn(move || serve(stream, &files, &hits, &stop));
            }
        });
    }
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        for socket in &sockets {
            socket.set_nonblocking(true).expect("O_NONBLOCK");
        }
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        while stop.wait(&fds) {
            // What they carry is in the capture; here it is only taken out of the way.
            for socket in &sockets {
                while socket.recv(&mut buffer).is_ok() {}
            }
        }
    });
}

fn serve(mut stream: TcpStream, files: &Path, hits: &Hits, stop: &Stop) {
    let (Ok(src), Ok(dst)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let (src, dst) = (canonical(src), canonical(dst));
    let mut bytes = Vec::new();
    let mut chunk = [0; 16384];
    let (mut told, mut answered) = (false, false);
    while stop.wait(&[stream.as_fd()]) {
        let Ok(count @ 1..) = stream.read(&mut chunk) else { break };
        if bytes.len() < KEPT {
            bytes.extend_from_slice(&chunk[..count]);
        }
        let Some(head) = head_length(&bytes) else { continue };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        if !told && text.to_ascii_lowercase().contains("expect: 100-continue") {
            told = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_ok();
        }
        if bytes.len() >= (head + content_length(&text)).min(KEPT) {
            // Written down before the answer leaves: whoever has read the answer finds the hit.
            hits.push(Hit { src, dst, sni: None, bytes: std::mem::take(&mut bytes) });
            answered = true;
            let _gone = stream.write_all(&answer(&text, files, dst));
            break;
        }
    }
    if !answered {
        hits.push(Hit { src, dst, sni: None, bytes });
    }
    // Closing with unread bytes would reset the connection and take the answer along.
    let _gone = stream.shutdown(Shutdown::Write);
    let _timeout = stream.set_read_timeout(Some(Duration::from_secs(1)));
    while matches!(stream.read(&mut chunk), Ok(1..)) {}
}

/// `/bytes/N` gives N bytes, `/redir-to-evil` redirects to evil.test, `/www/` is the files; the rest names the address.
fn answer(request: &str, files: &Path, dst: SocketAddr) -> Vec<u8> {
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, body) = if let Some(size) = path.strip_prefix("/bytes/") {
        ("200 OK".to_owned(), vec![b'x'; size.split('/').next().and_then(|size| size.parse().ok()).unwrap_or(0)])
    } else if let Some(file) = path.strip_prefix("/www/") {
        match std::fs::read(files.join(file.split('?').next().unwrap_or_default())) {
            Ok(body) => ("200 OK".to_owned(), body),
            Err(_) => ("404 Not Found".to_owned(), Vec::new()),
        }
    } else if path.starts_with("/redir-to-evil") {
        ("302 Found\r\nLocation: http://evil.test/redirected".to_owned(), Vec::new())
    } else {
        ("200 OK".to_owned(), format!("sink {}\n", dst.ip()).into_bytes())
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.into_bytes(), if request.starts_with("HEAD ") { Vec::new() } else { body }].concat()
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &str) -> usize {
    let value = |line: &str| {
        line.to_ascii_lowercase().strip_prefix("content-length:").and_then(|value| value.trim().parse().ok())
    };
    head.lines().find_map(value).unwrap_or(0)
}

/// IPv4 written as IPv4, also where a dual-stack socket shows it mapped.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
