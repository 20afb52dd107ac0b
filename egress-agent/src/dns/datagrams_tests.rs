use super::*;
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::socket::{
        setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv4RecvErr},
    },
};
use std::{net, os::fd::AsFd as _, pin::Pin, time::Duration};

fn served(address: &str, every_address: bool) -> (Datagrams, u16) {
    let socket = net::UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    if every_address {
        setsockopt(&socket, Ipv4PacketInfo, &true).unwrap();
    }
    let port = socket.local_addr().unwrap().port();
    (Datagrams::new(socket, every_address).unwrap(), port)
}

fn client(address: &str) -> net::UdpSocket {
    let client = net::UdpSocket::bind(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client
}

async fn once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// Takes so many questions, which are there already, and has an answer for each that repeats it.
async fn take(served: &Datagrams, questions: usize) -> Outbox {
    let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
    // Tokio does not know yet that the socket can be read, so the first one is waited for.
    assert_eq!(served.receive(&mut inbox, |question, asker| outbox.push(question, asker)).await.unwrap(), 1);
    assert_eq!(inbox.0.len(), BUFFER, "nobody has seen that they come together");
    let (mut count, mut room) = (1, PAIR);
    while count < questions {
        let taken = served.receive(&mut inbox, |question, asker| outbox.push(question, asker)).await.unwrap();
        assert_eq!(taken, (1 + room).min(questions - count), "a batch is full while there are questions");
        if taken == 1 + room {
            room = BATCH;
        }
        assert_eq!(inbox.0.len(), room * BUFFER, "there is room for more once it was full");
        count += taken;
    }
    outbox
}

/// Every address of 127.0.0.0/8 is one's own, as every address is in a resolver's namespace.
#[tokio::test]
async fn an_answer_bears_the_address_that_was_asked() {
    let (served, port) = served("0.0.0.0:0", true);
    let client = client("127.0.0.1:0");
    let servers = ["127.0.0.53", "127.9.8.7", "127.9.8.7", "127.0.0.53"];
    for (number, server) in (0_u8..).zip(servers) {
        client.send_to(&[number], (server, port)).unwrap();
    }
    let mut outbox = take(&served, servers.len()).await;
    assert_eq!(served.answer(&mut outbox).await, 0);
    for (number, server) in (0_u8..).zip(servers) {
        let mut buffer = [0; 64];
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&[number][..], format!("{server}:{port}").parse().unwrap()));
    }
}

#[tokio::test]
async fn answers_go_to_who_asked_in_their_order() {
    const QUESTIONS: u8 = 40;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (served, port) = served(address, false);
        let to = net::SocketAddr::new(address.parse::<net::SocketAddr>().unwrap().ip(), port);
        let clients = [(); 2].map(|()| client(address));
        for number in 0..QUESTIONS {
            clients[usize::from(number % 2)].send_to(&[7; 90][..usize::from(number)], to).unwrap();
        }
        let mut outbox = take(&served, QUESTIONS.into()).await;
        assert_eq!(served.answer(&mut outbox).await, 0);
        assert_eq!(served.answer(&mut outbox).await, 0, "it is empty");
        for number in 0..QUESTIONS {
            let mut buffer = [0; 64];
            let (length, from) = clients[usize::from(number % 2)].recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&[7; 90][..usize::from(number)], to), "{address}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_sent_takes_no_other_with_it() {
    for every_address in [false, true] {
        let (served, port) = served("127.0.0.1:0", every_address);
        let client = client("127.0.0.1:0");
        for number in 0..4 {
            client.send_to(&[number], ("127.0.0.1", port)).unwrap();
        }
        let mut outbox = take(&served, 4).await;
        for place in [0, 2] {
            // No datagram goes to port 0.
            outbox.answers[place].1.from.set_port(0);
        }
        assert_eq!(served.answer(&mut outbox).await, 2);
        for number in [1, 3] {
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], [number]);
        }
    }
}

#[tokio::test]
async fn answers_leave_together_where_others_are_expected_and_at_once_where_not() {
    let (served, port) = served("127.0.0.1:0", false);
    let client = client("127.0.0.1:0");
    client.send_to(&[0], ("127.0.0.1", port)).unwrap();
    let asker = take(&served, 1).await.answers[0].1;
    client.set_nonblocking(true).unwrap();
    let arrived = || {
        let mut buffer = [0; 64];
        client.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    };
    {
        let mut first = pin!(served.answer_together(b"1", asker, true));
        assert!(once(first.as_mut()).await.is_pending());
        for later in [b"2", b"3"] {
            assert_eq!(once(pin!(served.answer_together(later, asker, true))).await, Poll::Ready(0));
        }
        assert_eq!(arrived(), None, "they wait for each other");
        assert_eq!(first.await, 0);
    }
    // Loopback: what was sent is there.
    assert_eq!([(); 4].map(|()| arrived()), [Some(b"1".to_vec()), Some(b"2".to_vec()), Some(b"3".to_vec()), None]);
    assert_eq!(once(pin!(served.answer_together(b"4", asker, false))).await, Poll::Ready(0));
    assert_eq!(arrived(), Some(b"4".to_vec()), "nothing to wait for");
}

#[tokio::test]
async fn an_error_behind_questions_is_told() {
    let (served, port) = served("127.0.0.1:0", false);
    setsockopt(&served.socket, Ipv4RecvErr, &true).unwrap();
    let gone = client("127.0.0.1:0").local_addr().unwrap();
    let client = client("127.0.0.1:0");
    for number in 0..3 {
        client.send_to(&[number], ("127.0.0.1", port)).unwrap();
    }
    let (mut inbox, mut questions) = (Inbox::default(), Vec::new());
    served.receive(&mut inbox, |question, _| questions.push(question[0])).await.unwrap();
    let fails = |question: &[u8], _| {
        questions.push(question[0]);
        // Nobody is there, and the socket hears of it.
        sendto(served.socket.as_raw_fd(), b"answer", &SockaddrStorage::from(gone), MsgFlags::empty()).unwrap();
        let mut error = [PollFd::new(served.socket.as_fd(), PollFlags::empty())];
        assert_eq!(poll(&mut error, 5000_u16).unwrap(), 1);
    };
    let error = served.receive(&mut inbox, fails).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    served.receive(&mut inbox, |question, _| questions.push(question[0])).await.unwrap();
    assert_eq!(questions, [0, 1, 2]);
}
