//! What is slowed down arrives whole, segment by segment, and is asked for as without egressd.

use super::{OK, offloads};
use lab::{Lab, Running, need, until};
use std::{fs, path::Path, time::Duration};

const BYTES: usize = 2_000_000;
const H2: u16 = 8443;
const WS: u16 = 8765;
const SOON: Duration = Duration::from_secs(10);

/// Sends what comes back, until the other side closes.
const ECHO: &str = "import asyncio, websockets
async def echo(peer):
    async for message in peer:
        await peer.send(message)
async def serve():
    async with websockets.serve(echo, '', 8765, max_size=None):
        await asyncio.Future()
asyncio.run(serve())";

/// Messages of odd sizes, up to a whole one; tells the digest of what came back.
const ASK: &str = "import asyncio, hashlib, sys, websockets
sent = open(sys.argv[2], 'rb').read()
async def ask():
    whole = hashlib.sha256()
    async with websockets.connect('ws://' + sys.argv[1] + ':8765', max_size=None) as peer:
        at = 0
        for size in [1, 1447, 1448, 1449, 65537, len(sent)]:
            message = sent[at:at + size]
            await peer.send(message)
            whole.update(await peer.recv())
            at += size
    print(whole.hexdigest())
asyncio.run(ask())";

/// Bytes that no two places have alike.
fn odd_bytes() -> Vec<u8> {
    (0_u32..BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect()
}

/// An HTTP/2 server with a certificate chain of 12 KB, and a WebSocket server.
fn serve(lab: &Lab, files: &Path) -> (String, [Running; 2]) {
    ["nghttpd", "openssl"].into_iter().for_each(need);
    let (certificate, key) = (lab.directory().join("long.pem"), lab.directory().join("long.key"));
    let names: String = (0..600).map(|n| format!(",DNS:n{n}.padding.test")).collect();
    let made = lab.sink_ns().sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=sink.test \
         -addext subjectAltName=DNS:ok.test{names} -keyout {} -out {}",
        key.display(),
        certificate.display()
    ));
    made.exits(0);
    assert!(fs::metadata(&certificate).unwrap().len() > 12_000);
    let start = |program: &str, arguments: &[&str]| {
        let mut command = lab.sink_ns().command(program);
        command.args(arguments);
        lab.cgroup().place(&mut command);
        Running::spawn(command)
    };
    let (files, certificate, key) = (files.to_str().unwrap(), certificate.to_str().unwrap(), key.to_str().unwrap());
    let h2 = start("nghttpd", &["--echo-upload", "-d", files, &H2.to_string(), key, certificate]);
    let ws = start(lab::PYTHON, &["-I", "-c", ECHO]);
    until(SOON, "both servers listen", || {
        [H2, WS].iter().all(|port| lab.sink_ns().sh(&format!("nc -z -w1 {OK} {port}")).code == Some(0))
    });
    (certificate.to_owned(), [h2, ws])
}

#[test]
fn t39_what_is_slowed_down_arrives_whole() {
    let lab = Lab::new();
    let bytes = odd_bytes();
    fs::create_dir(lab.www_dir()).unwrap();
    let file = lab.www_dir().join("f");
    fs::write(&file, &bytes).unwrap();
    let limits = lab.file("both.toml", "[bandwidth]\negress = \"20mbit\"\ningress = \"50mbit\"");
    let file = file.display();
    for (mtu, (_, launch)) in [1500, 1280].into_iter().zip(lab.shapes()) {
        lab.box_ns().ip(&format!("link set eth0 mtu {mtu}"));
        offloads(&lab, mtu == 1500);
        let token = lab.token(&format!("up-{mtu}"));
        let script = format!(
            "curl -fsS -H 'Accept: application/json' -A Test/1.0 -T {file} http://{OK}:8080/up/{token} >/dev/null && \
             curl -fsS http://{OK}:8080/www/f | sha256sum && sha256sum <{file} && curl -fsS -X DELETE http://{OK}:8080/d/{token}"
        );
        let said = launch.flags(&format!("--policy {} --allow {OK}:8080", limits.display())).sh(&script).output();
        let sums: Vec<_> = said.exits(0).stdout.lines().take(2).collect();
        assert!(sums.len() == 2 && sums[0] == sums[1], "{said}");
        assert!(said.took > Duration::from_millis(500), "16 Mbit cannot take {:?}", said.took);
        // Byte by byte what the same programs ask without egressd.
        let free = lab.unconfined(&script);
        free.exits(0);
        let hits = lab.expect_hits(&token, 4);
        let of = |what: &str| hits.iter().filter(|hit| hit.request().starts_with(what)).collect::<Vec<_>>();
        for what in ["PUT", "DELETE"] {
            let [one, two] = &of(what)[..] else { panic!("{what}: {hits:?}") };
            assert!(one.bytes == two.bytes, "{what} differs: {} {}", one.request(), two.request());
        }
        assert!(of("PUT")[0].body() == bytes, "the upload differs");
        if mtu == 1280 {
            let longest = lab.frames_to(OK.parse::<std::net::IpAddr>().unwrap()).iter().map(|frame| frame.len).max();
            // Of the first round as well, whose segments the device would have made.
            assert!(longest.is_some(), "no frame");
            let mut late = lab.frames_to(OK.parse::<std::net::IpAddr>().unwrap()).into_iter().rev();
            assert!(late.by_ref().take(500).all(|frame| frame.len <= 1280 + 14), "a frame is longer than its path");
        }
    }
}

#[test]
fn t39_http2_and_websockets_arrive_whole() {
    let lab = Lab::without_capture();
    let bytes = odd_bytes();
    let files = lab.directory().join("h2");
    fs::create_dir(&files).unwrap();
    let file = files.join("f");
    fs::write(&file, &bytes[..1_000_000]).unwrap();
    let (certificate, _servers) = serve(&lab, &files);
    let ask = lab.file("ask.py", ASK);
    let limits = lab.file("both.toml", "[bandwidth]\negress = \"20mbit\"\ningress = \"50mbit\"");
    let flags = format!("--policy {} --allow ok.test:{H2} --allow ok.test:{WS}", limits.display());
    let script = format!(
        "f={file}; h2() {{ curl -fsS --http2 --cacert {certificate} -A Test/1.0 -w '%{{http_version}} ' \"$@\"; }}
         h2 -o up -T $f https://ok.test:{H2}/up && sha256sum <up && h2 -o down https://ok.test:{H2}/f && sha256sum <down &&
         sha256sum <$f && {} -I {} ok.test $f",
        lab::PYTHON,
        ask.display(),
        file = file.display(),
    );
    for (mtu, (_, launch)) in [1500, 1280].into_iter().zip(lab.shapes()) {
        lab.box_ns().ip(&format!("link set eth0 mtu {mtu}"));
        let said = launch.flags(&flags).sh(&script).output();
        let lines: Vec<_> = said.exits(0).stdout.lines().collect();
        let [up, down, whole, echo] = lines[..] else { panic!("{said}") };
        assert_eq!((up, down), (format!("2 {whole}").as_str(), format!("2 {whole}").as_str()), "{said}");
        assert_eq!(format!("{echo}  -"), whole, "{said}");
        // 16 Mbit of uploads, at 20 Mbit a second less a burst.
        assert!(said.took > Duration::from_millis(500), "{:?}", said.took);
    }
}
