//! Channels over one WebSocket: each message begins with the number of the channel that it belongs to.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

/// The channel of version 5 on which the number of a channel that ends is sent.
const CLOSE_CHANNEL: u8 = 255;

/// The subprotocols of remote commands, as upstream's `wsstream` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelProtocol {
    name: Option<&'static str>,
    /// Text messages: the channel as a digit, then base64.
    base64: bool,
    /// The end of the command comes as a `Status` object, not as text.
    pub status_object: bool,
    /// The client can end a channel without ending the connection.
    close_signal: bool,
}

const PROTOCOLS: [ChannelProtocol; 5] = [
    ChannelProtocol { name: Some("v5.channel.k8s.io"), base64: false, status_object: true, close_signal: true },
    ChannelProtocol { name: Some("v4.channel.k8s.io"), base64: false, status_object: true, close_signal: false },
    ChannelProtocol { name: Some("v4.base64.channel.k8s.io"), base64: true, status_object: true, close_signal: false },
    ChannelProtocol { name: Some("channel.k8s.io"), base64: false, status_object: false, close_signal: false },
    ChannelProtocol { name: Some("base64.channel.k8s.io"), base64: true, status_object: false, close_signal: false },
];

/// What a message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    Data(u8, Bytes),
    /// The client sends no more on this channel.
    Close(u8),
    /// The whole connection ends.
    End,
    /// Pings, empty messages, and messages that cannot be read.
    Nothing,
}

impl ChannelProtocol {
    /// The first protocol of the client's offer that exists; a client that offers none gets the oldest. `None`: nothing fits.
    pub fn negotiate(offered: &[&str]) -> Option<ChannelProtocol> {
        if offered.is_empty() {
            return Some(ChannelProtocol { name: None, base64: false, status_object: false, close_signal: false });
        }
        offered.iter().find_map(|name| PROTOCOLS.into_iter().find(|known| known.name == Some(name)))
    }

    /// The subprotocol to name in the handshake.
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    pub fn encode(&self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.put_u8(channel);
        bytes.put_slice(data);
        Message::binary(bytes.freeze())
    }

    /// The message with which a client ends a channel, where the protocol has one.
    pub fn encode_close(&self, channel: u8) -> Option<Message> {
        self.close_signal.then(|| Message::binary(vec![CLOSE_CHANNEL, channel]))
    }

    pub fn decode(&self, message: Message) -> ChannelEvent {
        let mut data = match message {
            Message::Text(text) => Bytes::from(text),
            Message::Binary(data) => data,
            Message::Close(_) => return ChannelEvent::End,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return ChannelEvent::Nothing,
        };
        if data.is_empty() {
            return ChannelEvent::Nothing;
        }
        let channel = data.split_to(1)[0];
        if self.base64 {
            return match (channel.checked_sub(b'0'), STANDARD.decode(&data)) {
                (Some(channel), Ok(data)) => ChannelEvent::Data(channel, data.into()),
                _ => ChannelEvent::Nothing,
            };
        }
        match (self.close_signal, channel, data.as_ref()) {
            (true, CLOSE_CHANNEL, [ended]) => ChannelEvent::Close(*ended),
            (true, CLOSE_CHANNEL, _) => ChannelEvent::Nothing,
            _ => ChannelEvent::Data(channel, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(name: &str) -> ChannelProtocol {
        ChannelProtocol::negotiate(&[name]).unwrap()
    }

    #[test]
    fn the_clients_order_decides() {
        let name = |offered: &[&str]| ChannelProtocol::negotiate(offered).map(|protocol| protocol.name());
        assert_eq!(
            name(&["v6.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some(Some("v4.channel.k8s.io"))
        );
        assert_eq!(name(&[]), Some(None));
        assert_eq!(name(&["graphql-ws"]), None);
    }

    #[test]
    fn every_protocol_round_trips() {
        for known in PROTOCOLS {
            let event = known.decode(known.encode(1, b"ok\n\xff"));
            assert_eq!(event, ChannelEvent::Data(1, Bytes::from_static(b"ok\n\xff")), "{known:?}");
            assert_eq!(known.decode(Message::binary("")), ChannelEvent::Nothing);
            assert_eq!(known.decode(Message::Close(None)), ChannelEvent::End);
        }
    }

    #[test]
    fn bytes_on_the_wire() {
        assert_eq!(protocol("v4.channel.k8s.io").encode(2, b"x"), Message::binary(&b"\x02x"[..]));
        assert_eq!(protocol("base64.channel.k8s.io").encode(0, b"hello"), Message::text("0aGVsbG8="));
        assert_eq!(protocol("base64.channel.k8s.io").decode(Message::text("0***")), ChannelEvent::Nothing);
    }

    #[test]
    fn only_version_five_closes_channels() {
        let close = Message::binary(&b"\xff\x00"[..]);
        assert_eq!(protocol("v5.channel.k8s.io").decode(close.clone()), ChannelEvent::Close(0));
        assert_eq!(protocol("v5.channel.k8s.io").encode_close(0), Some(close.clone()));
        assert_eq!(protocol("v4.channel.k8s.io").decode(close), ChannelEvent::Data(255, Bytes::from_static(b"\0")));
        assert_eq!(protocol("v4.channel.k8s.io").encode_close(0), None);
    }
}
