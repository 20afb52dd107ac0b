//! Squid as the proxy at 198.51.100.80:3128: a real one, with its own resolver and its own idea of what is allowed.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use nix::unistd::{User, chown};

use crate::{PROXY, cgroup::Cgroup, netns::Netns, wait::until};

/// A running Squid. Dropping it kills it.
#[derive(Debug)]
pub struct Squid {
    child: Child,
}

impl Squid {
    /// Starts it in `netns`; it lets through requests for `hosts` and CONNECT to their port 443, and refuses the rest.
    pub(crate) fn start(netns: &Netns, cgroup: &Cgroup, directory: &Path, hosts: &[&str]) -> Self {
        let words = prepare(directory, "squid", PROXY, hosts);
        let mut command = netns.command(&words[0]);
        command.args(&words[1..]);
        cgroup.place(&mut command);
        crate::process::ends_with_caller(&mut command);
        let home = directory.join("squid");
        let log = std::fs::File::create(home.join("stderr")).expect("a log file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let squid = Self { child: command.spawn().expect("squid") };
        until(Duration::from_secs(15), "squid listens", || {
            netns.enter(|| TcpStream::connect_timeout(&SocketAddr::new(PROXY, 3128), Duration::from_secs(1)).is_ok())
        });
        squid
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Writes what a Squid at `address`:3128 needs into a directory of its own; returns the words that start it. They work
/// for root and for the user proxy.
pub(crate) fn prepare(directory: &Path, name: &str, address: IpAddr, hosts: &[&str]) -> Vec<String> {
    crate::need("squid");
    let home = directory.join(name);
    std::fs::create_dir(&home).unwrap_or_else(|error| panic!("{}: {error}", home.display()));
    let owner = User::from_name("proxy").ok().flatten().expect("the user proxy of the squid package");
    chown(&home, Some(owner.uid), Some(owner.gid)).expect("chown");
    let configuration = home.join("squid.conf");
    std::fs::write(&configuration, configure(&home, address, hosts)).expect("squid.conf");
    // The name also names shared memory: letters and digits only, and this lab's alone.
    let service = format!("{}{name}", directory.file_name().unwrap_or_default().display()).replace('-', "x");
    ["squid", "-N", "-d", "1", "-n", &service, "-f", &configuration.display().to_string()].map(str::to_owned).to_vec()
}

fn configure(home: &Path, address: IpAddr, hosts: &[&str]) -> String {
    let home = home.display();
    format!(
        "http_port {address}:3128
tcp_outgoing_address {address}
dns_nameservers 198.51.100.53
acl allowed dstdomain {}
acl CONNECT method CONNECT
acl tls port 443
http_access deny CONNECT !tls
http_access allow allowed
http_access deny all
access_log stdio:{home}/access.log
cache_log {home}/cache.log
coredump_dir {home}
pid_filename none
cache deny all
cache_mem 4 MB
memory_pools off
pinger_enable off
memory_cache_shared off
shutdown_lifetime 0 seconds
client_persistent_connections off
server_persistent_connections off
dns_timeout 5 seconds
visible_hostname proxy.test
",
        hosts.join(" ")
    )
}
