//! Whole sessions between our client and our server, in memory.

use std::time::Duration;

use streaming::Error;
use streaming::remotecommand::{self, Options};
use streaming::spdy::{Connection, Frame, FrameDecoder, FrameEncoder, Headers, Incoming, Role, reset};
use streaming::websocket::{self, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::{Decoder, Encoder};

fn pair() -> ((Connection, Incoming), (Connection, Incoming)) {
    let (near, far) = tokio::io::duplex(4096);
    (Connection::start(near, Role::Client), Connection::start(far, Role::Server))
}

#[tokio::test]
async fn bytes_pass_both_ways_and_half_close() {
    let ((client, _unused), (_server, mut incoming)) = pair();
    let echo = tokio::spawn(async move {
        let mut stream = incoming.next().await.unwrap().accept().unwrap();
        assert_eq!(stream.headers().get("Port"), Some("80"));
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
        // Held until the client is through.
        assert!(incoming.next().await.is_none());
    });
    let mut stream = client.open(Headers::default().with("port", "80")).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, sent);
    drop(stream);
    client.close();
    echo.await.unwrap();
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let ((client, _a), (_b, mut incoming)) = pair();
    tokio::spawn(async move {
        while let Some(offer) = incoming.next().await {
            let mut stream = offer.accept().unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
    let clients = (0..50u8).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut stream = client.open(Headers::default().with("n", n.to_string())).await.unwrap();
            stream.write_all(&[n; 1000]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.unwrap();
            assert_eq!(back, [n; 1000]);
        })
    });
    for result in futures::future::join_all(clients).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn what_was_finished_before_it_was_dropped_has_arrived() {
    let ((client, _a), (_b, mut incoming)) = pair();
    let (opened, mut served) =
        tokio::join!(client.open(Headers::default()), async { incoming.next().await.unwrap().accept().unwrap() });
    let mut opened = opened.unwrap();
    opened.write_all(b"all of it").await.unwrap();
    opened.shutdown().await.unwrap();
    drop(opened);
    let mut received = Vec::new();
    served.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"all of it");
}

#[tokio::test]
async fn refused_streams_and_lost_connections_are_errors() {
    let ((client, _a), (server, mut incoming)) = pair();
    let (refused, ()) = tokio::join!(client.open(Headers::default()), async { drop(incoming.next().await) });
    assert!(matches!(refused, Err(Error::Refused)));

    let (opened, served) =
        tokio::join!(client.open(Headers::default()), async { incoming.next().await.unwrap().accept().unwrap() });
    let mut opened = opened.unwrap();
    // A stream that is dropped half way is an error at the other end, not an end of file.
    drop(served);
    let error = opened.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    server.close();
    drop((server, incoming));
    client.closed().await;
    assert!(matches!(client.open(Headers::default()).await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_reader_that_stops_slows_the_writer_down() {
    let ((client, _a), (_b, mut incoming)) = pair();
    let (opened, served) =
        tokio::join!(client.open(Headers::default()), async { incoming.next().await.unwrap().accept().unwrap() });
    let (mut opened, mut served) = (opened.unwrap(), served);
    let write = async {
        let mut sent = 0usize;
        while sent < 8 << 20 {
            sent += opened.write(&[7; 32 * 1024]).await.unwrap();
        }
        opened.shutdown().await.unwrap();
    };
    tokio::pin!(write);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), &mut write).await.is_err(),
        "nothing held the writer back"
    );
    let mut received = Vec::new();
    let ((), read) = tokio::join!(write, served.read_to_end(&mut received));
    assert_eq!(read.unwrap(), 8 << 20);
}

/// Frames by hand against our server: pings come back, streams of the wrong parity and repeated ones are reset.
#[tokio::test]
async fn a_server_answers_raw_frames() {
    let (mut near, far) = tokio::io::duplex(4096);
    let (_server, mut incoming) = Connection::start(far, Role::Server);
    let (mut encoder, mut wire) = (FrameEncoder::new(), bytes::BytesMut::new());
    let syn = |stream| Frame::SynStream {
        stream,
        associated: 0,
        priority: 0,
        fin: true,
        unidirectional: false,
        headers: Headers::default(),
    };
    for frame in [Frame::Ping(1), Frame::Ping(2), syn(2), syn(3), syn(3), Frame::WindowUpdate { stream: 3, delta: 9 }] {
        encoder.encode(frame, &mut wire).unwrap();
    }
    near.write_all(&wire).await.unwrap();
    let mut stream = incoming.next().await.unwrap().accept().unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "SYN_STREAM carried FIN");

    let (mut decoder, mut input, mut answers) = (FrameDecoder::new(), bytes::BytesMut::new(), Vec::new());
    while answers.len() < 4 {
        near.read_buf(&mut input).await.unwrap();
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            answers.push(frame);
        }
    }
    assert_eq!(answers[0], Frame::Ping(1));
    assert_eq!(answers[1], Frame::RstStream { stream: 2, status: reset::PROTOCOL_ERROR });
    assert!(answers[2..].contains(&Frame::RstStream { stream: 3, status: reset::PROTOCOL_ERROR }));
}

#[tokio::test]
async fn garbage_ends_the_connection_with_goaway() {
    let (mut near, far) = tokio::io::duplex(4096);
    let (_server, mut incoming) = Connection::start(far, Role::Server);
    near.write_all(b"\x80\x09\x00\x01\x00\x00\x00\x00").await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01");
    drop(near);
    assert!(incoming.next().await.is_none());
}

#[tokio::test]
async fn a_remote_command_session() {
    let options = Options { stdin: true, stdout: true, stderr: false, tty: true };
    let ((client, _a), (_b, mut incoming)) = pair();
    let (opened, accepted) = tokio::join!(
        remotecommand::open(&client, options),
        remotecommand::accept(&mut incoming, options, Duration::from_secs(5))
    );
    let (mut near, mut far) = (opened.unwrap(), accepted.unwrap());
    assert!(near.stderr.is_none() && far.stderr.is_none());
    near.resize.as_mut().unwrap().write_all(br#"{"Width":80,"Height":24}"#).await.unwrap();
    let mut size = [0; 24];
    far.resize.as_mut().unwrap().read_exact(&mut size).await.unwrap();
    assert_eq!(&size, br#"{"Width":80,"Height":24}"#);
    far.error.shutdown().await.unwrap();
    assert_eq!(near.error.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn spdy_runs_through_a_websocket_tunnel() {
    let (near, far) = tokio::io::duplex(4096);
    let (near, far) = tokio::join!(websocket::client(near), websocket::server(far));
    let (client, _a) = Connection::start(Tunnel::new(near), Role::Client);
    let (_server, mut incoming) = Connection::start(Tunnel::new(far), Role::Server);
    let (opened, served) =
        tokio::join!(client.open(Headers::default()), async { incoming.next().await.unwrap().accept().unwrap() });
    let (mut opened, mut served) = (opened.unwrap(), served);
    let sent = vec![42; 200_000];
    let (written, read) = tokio::join!(
        async {
            opened.write_all(&sent).await?;
            opened.shutdown().await
        },
        async {
            let mut all = Vec::new();
            served.read_to_end(&mut all).await.map(|_| all)
        }
    );
    written.unwrap();
    assert_eq!(read.unwrap(), sent);
}
