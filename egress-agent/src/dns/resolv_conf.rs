//! The host's own resolvers, as the agent sees them.

use super::config::DnsError;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    path::PathBuf,
};

/// systemd-resolved's upstreams, then what libc uses (resolv.conf(5)).
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
const DNS_PORT: u16 = 53;

/// The upstreams of this host, from the first file that names one which is not a loopback stub. There is no fallback to
/// public resolvers: none left is an error.
pub fn host_servers() -> Result<Vec<SocketAddr>, DnsError> {
    first_servers(&FILES.map(PathBuf::from), interface_index)
}

fn first_servers(files: &[PathBuf], interface: impl Fn(&str) -> Option<u32>) -> Result<Vec<SocketAddr>, DnsError> {
    for path in files {
        let text = match fs::read(path) {
            Ok(octets) => String::from_utf8_lossy(&octets).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DnsError::HostServers { path: path.clone(), source }),
        };
        let servers = parse(&text, &interface);
        if !servers.is_empty() {
            return Ok(servers);
        }
    }
    Err(DnsError::NoHostServers { looked: files.to_vec() })
}

/// The servers that a resolv.conf names, in order, each once, less loopback stubs, unspecified addresses (libc reads them
/// as loopback) and what is no address.
fn parse(text: &str, interface: &impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(|word| server(word, interface)) else { continue };
        let ip = server.ip().to_canonical();
        if !ip.is_loopback() && !ip.is_unspecified() && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

fn server(word: &str, interface: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (address, scope) = word.split_once('%').map_or((word, None), |(address, scope)| (address, Some(scope)));
    match (address.parse().ok()?, scope) {
        (IpAddr::V6(v6), Some(scope)) => Some(SocketAddrV6::new(v6, DNS_PORT, 0, interface(scope)?).into()),
        (IpAddr::V6(v6), None) if v6.is_unicast_link_local() => None,
        (ip, None) => Some(SocketAddr::new(ip, DNS_PORT)),
        (IpAddr::V4(_), Some(_)) => None,
    }
}

fn interface_index(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| nix::net::if_::if_nametoindex(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str) -> Option<u32> {
        (name == "lab0").then_some(7)
    }

    fn servers(text: &str) -> Vec<String> {
        parse(text, &lab).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_come_in_order_without_stubs_and_doubles() {
        let text = "# nameserver 192.0.2.9\nsearch corp.example.test\nnameserver 127.0.0.53\nnameserver 198.51.100.53 # trailing\n\
                    nameserver\t2001:db8::53\nnameserver 198.51.100.53\nnameserver ::1\nnameserver 0.0.0.0\nnameservers 192.0.2.1\n";
        assert_eq!(servers(text), ["198.51.100.53:53", "[2001:db8::53]:53"]);
    }

    #[test]
    fn link_local_servers_need_an_interface_that_exists() {
        assert_eq!(
            servers("nameserver fe80::1\nnameserver fe80::1%nosuch\nnameserver fe80::1%lab0"),
            ["[fe80::1%7]:53"]
        );
    }

    #[test]
    fn f06_what_is_no_address_is_no_server() {
        assert!(
            servers(
                "nameserver not:an:ipv6\nnameserver 8.8.8\nnameserver 010.1.2.3\nnameserver 192.0.2.1%lab0\nnameserver"
            )
            .is_empty()
        );
    }

    #[test]
    fn the_first_file_with_a_server_wins_and_none_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let [missing, stub, real] = ["missing", "stub", "real"].map(|name| directory.path().join(name));
        fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        fs::write(&real, "nameserver 198.51.100.53\n").unwrap();
        let found = first_servers(&[missing.clone(), stub.clone(), real], lab).unwrap();
        assert_eq!(found, ["198.51.100.53:53".parse().unwrap()]);
        let error = first_servers(&[missing, stub], lab).unwrap_err().to_string();
        assert!(error.contains("stub") && error.contains("--dns"), "{error}");
        assert!(matches!(first_servers(&[directory.path().into()], lab), Err(DnsError::HostServers { .. })));
    }
}
