//! What root makes inside its own namespace: tunnels, routes, addresses, rules, translations, other namespaces. The packet
//! that leaves is judged, not what it was made of.

use super::{allowed, arrived, enforce, set};
use crate::job::Job;
use lab::{EVIL, EVIL6, Lab, Netns, OK, OK6, PYTHON, absent, need};

/// One datagram from here to there, with a mark or from an address of its choice.
const SEND: &str = "import errno, socket, sys
token, words = sys.argv[1], sys.argv[2:]
for word in words:
    name, to, *rest = word.split(',')
    sock = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, socket.SOCK_DGRAM)
    for setting in rest:
        key, value = setting.split('=')
        if key == 'mark':
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(value))
        else:
            sock.bind((value, 0))
    try:
        sock.sendto(f'{token}-{name};'.encode(), (to, 443))
        print(name, 'ok')
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error.errno))";

struct Own<'l> {
    lab: &'l Lab,
    job: Job<'l>,
    send: String,
}

impl<'l> Own<'l> {
    fn new(lab: &'l Lab) -> Self {
        let send = format!("{PYTHON} -I {}", lab.file("send.py", SEND).display());
        Self { lab, job: Job::new(lab, "job"), send }
    }

    /// Runs `script`, which sends by `$SEND TOKEN NAME,ADDRESS…`, where only `passes` arrives; then all of it where nobody enforces.
    #[track_caller]
    fn stops(&self, flags: &str, script: &str, passes: &[&str], all: &[&str]) {
        let Self { lab, job, send } = self;
        enforce(job, true, &format!("{} {flags}", allowed()));
        let run = |token: &str| {
            job.as_root(
                &script.replace("$SEND", send).replace("$TOKEN", token).replace("$OTHER", &token.replace("egl", "by")),
            )
        };
        // Of each call its own: what an earlier one let through is still among the frames.
        let token = lab.token(&format!("closed-{}", all[0]));
        let output = run(&token);
        assert_eq!(arrived(lab, &token), set(passes), "{output}");
        job.detach().exits(0);
        let token = lab.token(&format!("control-{}", all[0]));
        let output = run(&token);
        assert_eq!(arrived(lab, &token), set(all), "where nobody enforces: {output}");
    }
}

/// What is inside a tunnel may be allowed; what carries it is not.
#[test]
fn tunnels() {
    let lab = Lab::new();
    let own = Own::new(&lab);
    lab.box_ns().ip(&format!(
        "link add vx4 address 02:00:00:00:01:01 type vxlan id 5 remote {EVIL} dstport 4789 dev eth0
link add vx6 address 02:00:00:00:01:02 type vxlan id 6 remote {EVIL6} dstport 4789 dev eth0
link set vx4 up
link set vx6 up
addr add 192.0.2.1/24 dev vx4
addr add 2001:db8:5::1/64 dev vx6 nodad
neigh add 192.0.2.2 lladdr 02:00:00:00:02:01 dev vx4 nud permanent
neigh add 2001:db8:5::2 lladdr 02:00:00:00:02:02 dev vx6 nud permanent"
    ));
    // By sockets, whose own packet the policy allows, and by frames that no socket hook sees.
    let frames = lab.probe("frames.py");
    let script = format!(
        "$SEND $TOKEN in4,192.0.2.2 in6,2001:db8:5::2 plain4,{OK}; for device in vx4 vx6; do {frames} $OTHER-by-$device 02:00:00:00:02:01 $device; done"
    );
    own.stops("--allow 192.0.2.2:443 --allow [2001:db8:5::2]:443", &script, &["plain4"], &["in4", "in6", "plain4"]);
    for (word, frames) in [("closed", 0), ("control", 2)] {
        let there = |device: &str| {
            let token = format!("{}-by-{device}", lab.token(&format!("{word}-in4")).replace("egl", "by"));
            !arrived(&lab, &token).is_empty()
        };
        assert_eq!(usize::from(there("vx4")) + usize::from(there("vx6")), frames, "{word}: frames through a tunnel");
    }
}

/// What the kernel wraps, no socket hook sees: tunnels to a denied and to an allowed address. Geneve is UDP, and to an allowed
/// address like any other; ESP without a cipher, so that it can be read at the sink.
#[test]
fn tunnels_of_every_kind() {
    const FOUR: &str = "local 198.51.100.30 remote $to4";
    const SIX: &str = "local 2001:db8::30 remote $to6";
    const KEY: &str = "0x0123456789012345678901234567890123456789";
    let kinds = [
        ("ipip", format!("ip link add $name type ipip {FOUR}")),
        ("gre", format!("ip link add $name type gre {FOUR}")),
        ("gretap", format!("ip link add $name address 02:00:00:00:01:01 type gretap {FOUR}")),
        ("sit", format!("ip link add $name type sit {FOUR}")),
        ("ip6tnl", format!("ip link add $name type ip6tnl mode any {SIX}")),
        ("ip6gre", format!("ip link add $name type ip6gre {SIX}")),
        ("geneve", "ip link add $name address 02:00:00:00:01:02 type geneve id 7 remote $to4 dstport 443".to_owned()),
        (
            "esp",
            format!(
                "ip xfrm state add src 198.51.100.30 dst $to4 proto esp spi 7 reqid 7 mode tunnel auth 'hmac(sha1)' {KEY} enc 'ecb(cipher_null)' '' &&
ip xfrm policy add dst $inner/32 dir out tmpl src 198.51.100.30 dst $to4 proto esp reqid 7 mode tunnel"
            ),
        ),
    ];
    let lab = Lab::new();
    let own = Own::new(&lab);
    let (mut make, mut all) = (String::new(), Vec::new());
    for (kind, words) in &kinds {
        for (end, to4, to6) in [("evil", EVIL, EVIL6), ("ok", OK, OK6)] {
            let (at, name) = (all.len(), format!("{kind}_{end}"));
            let (net, inner) = match *kind {
                "sit" => (format!("2001:db8:5:{at}::1/64 nodad"), format!("2001:db8:5:{at}::2")),
                _ => (format!("192.0.2.{}/29", 8 * at + 1), format!("192.0.2.{}", 8 * at + 2)),
            };
            make += &format!("name={name} to4={to4} to6={to6} inner={inner}\n{words} && echo made $name\n");
            all.push((name, net, inner));
        }
    }
    // A kind whose module is missing is none of this kernel's.
    let made = lab.box_ns().sh(&make);
    let (there, none): (Vec<_>, Vec<_>) =
        all.iter().partition(|(name, ..)| made.stdout.contains(&format!("made {name}\n")));
    if !none.is_empty() {
        absent(&none.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>().join(", "));
    }
    let devices = there.iter().filter(|(name, ..)| !name.starts_with("esp"));
    lab.box_ns().ip(&devices
        .map(|(name, net, inner)| {
            let neighbour = match name.split_once('_') {
                Some(("gretap" | "geneve", _)) => {
                    format!("neigh add {inner} lladdr 02:00:00:00:02:01 dev {name} nud permanent\n")
                }
                _ => String::new(),
            };
            format!("link set {name} up\naddr add {net} dev {name}\n{neighbour}")
        })
        .collect::<String>());
    let inner = |inner: &str| if inner.contains(':') { format!("[{inner}]") } else { inner.to_owned() };
    let flags: String = there.iter().map(|(.., to)| format!(" --allow {}:443", inner(to))).collect();
    let words: String = there.iter().map(|(name, _, to)| format!(" {name},{to}")).collect();
    let names: Vec<&str> = there.iter().map(|(name, ..)| name.as_str()).chain(["plain4"]).collect();
    let open: Vec<&str> = names.iter().copied().filter(|name| matches!(*name, "geneve_ok" | "plain4")).collect();
    own.stops(&flags, &format!("$SEND $TOKEN{words} plain4,{OK}"), &open, &names);
}

/// A route that wraps a packet into another: the outer one carries a routing header.
#[test]
fn routes_that_encapsulate() {
    let lab = Lab::new();
    let own = Own::new(&lab);
    lab.box_ns().ip(&format!(
        "route add 2001:db8:77::/64 encap seg6 mode encap segs {EVIL6} dev eth0
route add 2001:db8:78::/64 encap seg6 mode inline segs {EVIL6} dev eth0"
    ));
    let script = format!("$SEND $TOKEN wrapped,2001:db8:77::1 inline,2001:db8:78::1 plain4,{OK}");
    own.stops(
        "--allow [2001:db8:77::1]:443 --allow [2001:db8:78::1]:443",
        &script,
        &["plain4"],
        &["wrapped", "inline", "plain4"],
    );
}

#[test]
fn routes_addresses_marks_and_neighbours() {
    let lab = Lab::new();
    let own = Own::new(&lab);
    let mac = lab.sink_mac();
    lab.box_ns().ip(&format!(
        "addr add 203.0.113.9/32 dev eth0
addr add 2001:db8:9::9/128 dev eth0 nodad
rule add fwmark 7 table 9
route add default via 198.51.100.77 table 9
route add ::/0 via 2001:db8::77 table 9
route add 203.0.113.128/25 dev eth0
neigh add 203.0.113.200 lladdr {mac} dev eth0 nud permanent"
    ));
    lab.box_ns().sh("ip -6 rule add fwmark 7 table 9").exits(0);
    // After attach as well: whatever the namespace gets later, it may not send from.
    let script = format!(
        "ip addr add 203.0.113.10/32 dev eth0
$SEND $TOKEN plain4,{OK} plain6,2001:db8::10 marked4,{EVIL},mark=7 marked6,{EVIL6},mark=7 on_link,203.0.113.200 late,{OK},from=203.0.113.10
ip addr del 203.0.113.10/32 dev eth0"
    );
    own.stops("", &script, &["plain4", "plain6"], &["marked4", "marked6", "on_link", "late", "plain4", "plain6"]);
}

/// Rules inside translate what is allowed into what is not, after the socket hooks have seen it.
#[test]
fn translations() {
    for tool in ["iptables", "ip6tables", "nft"] {
        need(tool);
    }
    let lab = Lab::new();
    let own = Own::new(&lab);
    let script = format!(
        "iptables -t nat -A OUTPUT -d 198.51.100.10 -p udp --dport 443 -j DNAT --to {EVIL}:443
ip6tables -t nat -A OUTPUT -d 2001:db8::10 -p udp --dport 443 -j DNAT --to [{EVIL6}]:443
$SEND $TOKEN dnat4,198.51.100.10 dnat6,2001:db8::10
iptables -t nat -F OUTPUT; ip6tables -t nat -F OUTPUT
nft add table ip own && nft add chain ip own out '{{ type route hook output priority mangle; }}' && \
nft add rule ip own out ip daddr 198.51.100.10 ip daddr set {EVIL}
$SEND $TOKEN rewritten,198.51.100.10
nft delete table ip own
$SEND $TOKEN plain4,198.51.100.10"
    );
    own.stops("", &script, &["plain4"], &["dnat4", "dnat6", "rewritten", "plain4"]);
}

/// A packet for loopback, which is open, is turned round on to the wire by rules of root's own.
#[test]
fn loopback_on_the_wire() {
    need("tc");
    let lab = Lab::new();
    let own = Own::new(&lab);
    // Loopback frames are for the address that they come from, and a bridge sends nothing back to where it learned that.
    lab.outer_ns().ip("link set box0 type bridge_slave learning off");
    lab.box_ns().ip("link set lo address 02:00:00:00:00:31");
    let script = format!(
        "tc qdisc add dev lo clsact && tc filter add dev lo egress protocol all bpf bytecode '1,6 0 0 4294967295,' action mirred egress redirect dev eth0
$SEND $TOKEN loop4,127.0.0.1 loop6,::1
tc qdisc del dev lo clsact
$SEND $TOKEN plain4,{OK}"
    );
    own.stops("", &script, &["plain4"], &["loop4", "loop6", "plain4"]);
}

/// Another namespace behind the sandbox's own, and a device that a process reads and writes: both are forwarded.
#[test]
fn forwarded_from_a_namespace_below_and_from_a_tun_device() {
    need("iptables");
    let lab = Lab::new();
    let own = Own::new(&lab);
    let nested = Netns::new();
    lab.box_ns().ip(&format!(
        "link add below type veth peer name eth0 netns {}
link set below up
addr add 192.0.2.1/24 dev below",
        nested.path().display()
    ));
    nested.ip("link set eth0 up\naddr add 192.0.2.2/24 dev eth0\nroute add default via 192.0.2.1");
    lab.box_ns()
        .sh("echo 1 > /proc/sys/net/ipv4/ip_forward; iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE")
        .exits(0);
    let tun = lab.file(
        "tun.py",
        "import fcntl, os, socket, struct, subprocess, sys
token, words = sys.argv[1], sys.argv[2:]
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'tun0', 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
for line in ('link set tun0 up', 'addr add 192.0.2.129/25 dev tun0'):
    subprocess.run(['ip', *line.split()], check=True)
for word in words:
    name, to = word.split(',')
    payload = f'{token}-{name};'.encode()
    udp = struct.pack('!HHHH', 5555, 443, 8 + len(payload), 0) + payload
    head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + socket.inet_aton('192.0.2.130') + socket.inet_aton(to)
    total = sum(struct.unpack('!10H', head))
    total = (total & 0xFFFF) + (total >> 16)
    os.write(tun, head[:10] + struct.pack('!H', ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:] + udp)",
    );
    let script = format!(
        "{PYTHON} -I {} $TOKEN tun,{EVIL} tun_plain,{OK}
nsenter --net={} $SEND $TOKEN below,{EVIL} below_plain,{OK}",
        tun.display(),
        nested.path().display()
    );
    let plain = ["tun_plain", "below_plain"];
    own.stops("", &script, &plain, &["tun", "below", "tun_plain", "below_plain"]);
}
