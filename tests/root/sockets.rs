//! Every kind of socket, both families: what the kernel is asked matters as little as who asks.

use std::net::IpAddr;

use lab::{BOX, DNS, DNS2, EVIL, EVIL6, Frame, Lab, OK, need};

/// How each way of `raw.py` shows on the wire where nothing stops it.
type Shows = fn(&Frame, &str) -> bool;

const RAW_WAYS: [(&str, Shows); 12] = [
    ("header_included", |frame, token| frame.carries(&format!("{token}-header_included"))),
    ("icmp", |frame, token| frame.protocol == 1 && frame.carries(&format!("{token}-icmp"))),
    ("gre", |frame, token| frame.protocol == 47 && frame.carries(&format!("{token}-gre"))),
    ("ping", |frame, token| frame.protocol == 1 && frame.carries(&format!("{token}-ping"))),
    ("link", |frame, token| frame.carries(&format!("{token}-link"))),
    ("bypass", |frame, token| frame.carries(&format!("{token}-bypass"))),
    ("vlan", |frame, token| frame.carries(&format!("{token}-vlan"))),
    ("fast_open", |frame, _| frame.is_tcp(7006)),
    ("mptcp", |frame, _| frame.is_tcp(7007)),
    ("udp_lite", |frame, token| frame.carries(&format!("{token}-udp_lite"))),
    ("tcp", |frame, _| frame.is_tcp(7011)),
    ("mapped_tcp", |frame, _| frame.is_tcp(7012)),
];

#[test]
fn t05_raw_icmp_and_packet_sockets() {
    need("ping");
    let lab = Lab::new();
    let (token, mac, probe) = (lab.token("raw"), lab.sink_mac(), lab.probe("raw.py"));
    let run = || lab.egressd("run").entering(lab.box_ns()).flags("--keep-cap net_raw");
    let output = run()
        .flags("--allow ok.test")
        .sh(&format!(
            "{probe} {EVIL} {token} {mac}; ping -c1 -W1 ok.test; echo echo=$?; curl -fsS http://ok.test/{token}"
        ))
        .output();
    output.exits(0);
    lab.expect_hits(&token, 1);
    for (way, shows) in RAW_WAYS {
        let leaked: Vec<_> = lab.frames().into_iter().filter(|frame| shows(frame, &token)).collect();
        assert!(leaked.is_empty(), "{way} leaked: {leaked:#?}");
    }
    lab.expect_silence(EVIL);
    // The device would drop these too, without a word: it is the cgroup's packet hook that tells the sender.
    for told in ["header_included", "icmp", "gre"] {
        output.says(&format!("{told}=EPERM"));
    }
    assert!(output.step("echo") != 0, "{output}");
    let pinged = |frame: &Frame| frame.dst == OK && frame.protocol == 1;
    assert!(!lab.frames().iter().any(pinged), "an echo left without icmp = \"echo\"");
    for refused in ["vsock", "xdp"] {
        assert!(!output.stdout.contains(&format!("{refused}=ok")), "{refused} sockets: {output}");
    }

    let policy = lab.file("echo.toml", "version = 1\n[allow]\nnames = [\"ok.test\"]\nicmp = \"echo\"\n");
    let echo = run()
        .arg("--policy")
        .arg(&policy)
        .sh(&format!("ping -c1 -W2 ok.test && {{ ping -c1 -W1 {EVIL}; echo evil=$?; }}"));
    assert_ne!(echo.output().exits(0).step("evil"), 0);
    assert!(lab.frames().iter().any(pinged), "the echo arrives");
    lab.expect_silence(EVIL);

    let control = lab.box_ns().sh(&format!("{} {EVIL} {token}-control {mac}", lab.probe("raw.py")));
    let frames = lab.frames();
    for (way, shows) in RAW_WAYS {
        let arrived = frames.iter().any(|frame| shows(frame, &format!("{token}-control")));
        assert!(arrived, "{way} is no test here, it does not arrive without egressd either: {control}");
    }
}

#[test]
fn t05_fragmentation_needed_lowers_the_path_mtu() {
    let lab = Lab::new();
    // The sink routes 203.0.113.0/24 on to a link with a smaller MTU.
    lab.sink_ns().ip("link add narrow mtu 1280 type veth peer name far\nlink set far up\nlink set narrow up\nroute add 203.0.113.0/24 dev narrow");
    lab.sink_ns().sh("echo 1 > /proc/sys/net/ipv4/ip_forward").exits(0);
    let probe = lab.probe("mtu.py");
    for (at, (shape, run)) in lab.shapes().into_iter().enumerate() {
        let address = format!("203.0.113.{}", 50 + at);
        let output = run.flags(&format!("--allow {address}:5000/udp")).sh(&format!("{probe} {address} 5000")).output();
        assert_eq!(output.exits(0).step("mtu"), 1280, "{shape}: {output}");
    }
    assert_eq!(lab.unconfined(&format!("{probe} 203.0.113.60 5000")).step("mtu"), 1280, "the control");
}

#[test]
fn t06_udp() {
    need("dig");
    let lab = Lab::new();
    let (probe, query) = (lab.probe("udp.py"), lab.probe("query.py"));
    let others = [DNS2.to_string(), "2001:db8::54".to_owned()];
    let (ok6, evil6): (IpAddr, IpAddr) = (lab::OK6.parse().unwrap(), EVIL6.parse().unwrap());
    let evils = format!("{EVIL} ::ffff:{EVIL} {EVIL6}");
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let output = run
            .flags("--allow both.test")
            .sh(&format!(
                "getent ahosts both.test
                {probe} {token}-ok {OK} {}
                {probe} {token}-evil {evils}
                {query} both.test {}
                dig @{DNS2} +tries=1 +time=1 evil.test; dig @{DNS2} +tcp +tries=1 +time=1 evil.test; true",
                lab::OK6,
                others.join(" ")
            ))
            .output();
        output.exits(0);
        for other in &others {
            output.says(&format!("{other}: {OK} from {other}"));
        }
        assert!(
            !output.stdout.lines().any(|line| line.contains(&EVIL.to_string()) && line.ends_with("=ok")),
            "{output}"
        );
        let frames = lab.frames();
        let count = |dst: IpAddr, port: u16| {
            let to = frames.iter().filter(|frame| frame.dst == dst && frame.is_udp(port));
            to.filter(|frame| frame.carries(&token)).count()
        };
        for dst in [OK, ok6] {
            assert_eq!(count(dst, 443), 6, "{dst}: one datagram for each way: {output}");
            assert_eq!([5000, 853, 5353, 123].map(|port| count(dst, port)), [0; 4], "{dst}: {output}");
        }
    }
    lab.expect_silence(EVIL);
    lab.expect_silence(evil6);
    let direct: Vec<_> = lab.frames_to(DNS2);
    assert!(direct.is_empty() && lab.zone().queries_for("evil.test").is_empty(), "{direct:#?}");

    let token = lab.token("control");
    lab.unconfined(&format!("{probe} {token} {evils}; dig @{DNS2} +tries=1 +time=1 evil.test")).exits(0);
    let frames = lab.frames();
    for way in ["sendto", "connected", "connected_elsewhere", "more", "sendmsg", "sendmmsg"] {
        let arrived = frames.iter().filter(|frame| frame.carries(&format!("{token}-{way};")));
        // Five ports at each of two addresses; the mapped one is the same address again.
        assert_eq!(arrived.count(), 15, "{way} in the control");
    }
    assert_eq!(lab.zone().queries_for("evil.test").len(), 1);
}

#[test]
fn t07_ipv6_parity() {
    let lab = Lab::new();
    let hidden: [IpAddr; 3] =
        [EVIL6.parse().unwrap(), "64:ff9b::c633:6414".parse().unwrap(), "fe80::2".parse().unwrap()];
    let others = format!(
        "curl -sS -m2 -6 'http://[{EVIL6}]/'; echo evil=$?
        curl -sS -m2 'http://[::ffff:{EVIL}]/'; echo mapped=$?
        curl -sS -m2 'http://[{}]/'; echo nat64=$?
        curl -sS -m2 'http://[fe80::2%25eth0]/'; echo link=$?",
        hidden[1]
    );
    let quiet = |output: &lab::Output| {
        for step in ["evil", "mapped", "nat64", "link"] {
            assert_eq!(output.step(step), 7, "{step}: {output}");
        }
        hidden.into_iter().chain([EVIL]).for_each(|dst| lab.expect_silence(dst));
    };
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let output = run
            .flags("--allow ok6.test")
            .sh(&format!("curl -fsS -m5 -6 http://ok6.test/{token}; echo ok=$?\n{others}"))
            .output();
        assert_eq!(output.step("ok"), 0, "{output}");
        lab.expect_hits(&token, 1);
        quiet(&output);
    }
    lab.box_ns().ip("addr flush dev eth0 scope global to 198.51.100.0/24");
    for (shape, run) in lab.shapes() {
        let token = lab.token(&format!("only6-{shape}"));
        let run = run.no_dns().flags("--dns 2001:db8::53 --allow ok6.test");
        let output = run.sh(&format!("curl -fsS -m5 http://ok6.test/{token}; echo ok=$?\n{others}")).output();
        assert_eq!(output.step("ok"), 0, "{output}");
        lab.expect_hits(&token, 1);
        quiet(&output);
    }
    lab.box_ns().ip(&format!("addr add {BOX}/24 dev eth0"));
    let control = lab.unconfined(&others);
    for step in ["evil", "mapped", "link"] {
        assert_eq!(control.step(step), 0, "{step} arrives without egressd: {control}");
    }
    assert!(!lab.frames_to(hidden[1]).is_empty(), "a frame to the NAT64 prefix leaves without egressd");
}

/// A socket that is bound to a device reaches loopback by no route, so its query is not answered; nor does it leave.
#[test]
fn dns_over_a_socket_that_is_bound_to_a_device_goes_nowhere() {
    const PROBE: &str = "import errno, socket, sys
# id 1, recursion desired, one question: ok.test, A, IN
query = bytes.fromhex('00010100000100000000000002') + b'ok' + bytes.fromhex('04') + b'test' + bytes.fromhex('0000010001')
for server in sys.argv[2:]:
    kind = socket.AF_INET6 if ':' in server else socket.AF_INET
    ask = socket.socket(kind, socket.SOCK_DGRAM)
    ask.settimeout(3)
    ask.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
    try:
        ask.sendto(query, (server, 53))
        print(sys.argv[1], server, 'answered by', ask.recvfrom(512)[1][0])
    except OSError as error:
        print(sys.argv[1], server, errno.errorcode.get(error.errno, error))";
    let lab = Lab::new();
    let file = lab.file("bound.py", PROBE);
    let ask = |device: &str| format!("{} -I {} {device} {DNS} 2001:db8::53", lab::PYTHON, file.display());
    lab.unconfined(&ask("eth0")).exits(0).says(&format!("eth0 {DNS} answered"));
    let before = (lab.frames_to(DNS).len(), lab.zone().queries_for("ok.test").len());
    // egressd itself asks for nothing that nobody asked it for.
    let said = lab.sh("--allow ok.test --pre-resolve off", &ask("eth0"));
    said.exits(0).says(&format!("eth0 {DNS} EPERM")).says("eth0 2001:db8::53 EPERM");
    assert_eq!((lab.frames_to(DNS).len(), lab.zone().queries_for("ok.test").len()), before);
    lab.expect_silence("127.0.0.1".parse::<IpAddr>().unwrap());
    let said = lab.sh("--allow ok.test", &ask("lo"));
    said.exits(0).says(&format!("lo {DNS} answered by {DNS}")).says("lo 2001:db8::53 answered by 2001:db8::53");
}
