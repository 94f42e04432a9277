//! Frames of SPDY/3.1 and their bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::headers::{Deflater, Headers, Inflater};
use crate::{Error, Result};

const VERSION: u16 = 3;
const PREFIX_BYTES: usize = 8;
/// A control frame larger than this is an attack. Data frames have no bound of ours: they are passed on in pieces.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// The largest piece of a data frame that is passed on.
const DATA_PIECE_BYTES_MAX: usize = 32 * 1024;

const FLAG_FIN: u8 = 0x01;
const FLAG_UNIDIRECTIONAL: u8 = 0x02;

/// Why a stream was reset (RST_STREAM status codes).
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
}

/// Why a connection goes away (GOAWAY status codes).
pub mod goaway {
    pub const OK: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub flags: u8,
    pub id: u32,
    pub value: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream { stream: u32, associated: u32, priority: u8, fin: bool, unidirectional: bool, headers: Headers },
    SynReply { stream: u32, fin: bool, headers: Headers },
    RstStream { stream: u32, status: u32 },
    Settings(Vec<Setting>),
    Ping(u32),
    GoAway { last_good: u32, status: u32 },
    Headers { stream: u32, fin: bool, headers: Headers },
    WindowUpdate { stream: u32, delta: u32 },
    Data { stream: u32, fin: bool, payload: Bytes },
}

/// Writes frames. Header compression has state: frames must reach the wire in the order in which they were encoded.
pub struct FrameEncoder(Deflater);

impl FrameEncoder {
    pub fn new() -> Self {
        FrameEncoder(Deflater::new())
    }
}

impl Default for FrameEncoder {
    fn default() -> Self {
        Self::new()
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    out.reserve(PREFIX_BYTES + body.len());
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(body.len() as u64, 3);
    out.put_slice(body);
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

impl Encoder<Frame> for FrameEncoder {
    type Error = Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<()> {
        match frame {
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                let mut body = words(&[stream, associated]);
                body.extend([priority << 5, 0]);
                body.extend(self.0.deflate(&headers)?);
                let unidirectional = if unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                control(out, 1, u8::from(fin) | unidirectional, &body);
            }
            Frame::SynReply { stream, fin, headers } => {
                let mut body = words(&[stream]);
                body.extend(self.0.deflate(&headers)?);
                control(out, 2, u8::from(fin), &body);
            }
            Frame::RstStream { stream, status } => control(out, 3, 0, &words(&[stream, status])),
            Frame::Settings(settings) => {
                let mut body = words(&[settings.len() as u32]);
                for Setting { flags, id, value } in settings {
                    body.extend(words(&[u32::from(flags) << 24 | id & 0x00ff_ffff, value]));
                }
                control(out, 4, 0, &body);
            }
            Frame::Ping(id) => control(out, 6, 0, &words(&[id])),
            Frame::GoAway { last_good, status } => control(out, 7, 0, &words(&[last_good, status])),
            Frame::Headers { stream, fin, headers } => {
                let mut body = words(&[stream]);
                body.extend(self.0.deflate(&headers)?);
                control(out, 8, u8::from(fin), &body);
            }
            Frame::WindowUpdate { stream, delta } => control(out, 9, 0, &words(&[stream, delta])),
            Frame::Data { stream, fin, payload } => {
                out.reserve(PREFIX_BYTES + payload.len());
                out.put_u32(stream & 0x7fff_ffff);
                out.put_u8(u8::from(fin));
                out.put_uint(payload.len() as u64, 3);
                out.put_slice(&payload);
            }
        }
        Ok(())
    }
}

/// The rest of a data frame whose beginning has been passed on.
struct DataRest {
    stream: u32,
    fin: bool,
    bytes: usize,
}

/// Reads frames. Data frames come out in pieces of bounded size, `fin` on the last; control frames of unknown kinds are
/// skipped, as the specification asks.
pub struct FrameDecoder {
    inflater: Inflater,
    data: Option<DataRest>,
}

impl FrameDecoder {
    pub fn new() -> Self {
        FrameDecoder { inflater: Inflater::new(), data: None }
    }

    fn data(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let rest = self.data.as_mut()?;
        if rest.bytes > 0 && input.is_empty() {
            return None;
        }
        let payload = input.split_to(rest.bytes.min(input.len()).min(DATA_PIECE_BYTES_MAX)).freeze();
        rest.bytes -= payload.len();
        let (stream, last) = (rest.stream, rest.bytes == 0);
        let fin = last && rest.fin;
        if last {
            self.data = None;
        }
        Some(Frame::Data { stream, fin, payload })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Option<Frame>> {
        let fin = flags & FLAG_FIN != 0;
        let body = &mut body;
        Ok(Some(match kind {
            1 => {
                let (stream, associated) = (id(body)?, id(body)?);
                let priority = body.try_get_u16().map_err(|_| CUT_SHORT)? >> 13;
                Frame::SynStream {
                    stream,
                    associated,
                    priority: priority as u8,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers: self.inflater.inflate(body)?,
                }
            }
            2 => Frame::SynReply { stream: id(body)?, fin, headers: self.inflater.inflate(body)? },
            3 => Frame::RstStream { stream: id(body)?, status: word(body)? },
            4 => Frame::Settings(settings(body)?),
            6 => Frame::Ping(word(body)?),
            7 => Frame::GoAway { last_good: id(body)?, status: word(body)? },
            8 => Frame::Headers { stream: id(body)?, fin, headers: self.inflater.inflate(body)? },
            9 => Frame::WindowUpdate { stream: id(body)?, delta: id(body)? },
            _ => return Ok(None),
        }))
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

const CUT_SHORT: Error = Error::Protocol("a control frame is cut short");

fn word(body: &mut &[u8]) -> Result<u32> {
    body.try_get_u32().map_err(|_| CUT_SHORT)
}

/// Identifiers and window deltas have 31 bits.
fn id(body: &mut &[u8]) -> Result<u32> {
    Ok(word(body)? & 0x7fff_ffff)
}

fn settings(body: &mut &[u8]) -> Result<Vec<Setting>> {
    let count = word(body)? as usize;
    if body.len() != count.saturating_mul(8) {
        return Err(Error::Protocol("a SETTINGS frame has the wrong length"));
    }
    (0..count)
        .map(|_| {
            let head = word(body)?;
            Ok(Setting { flags: (head >> 24) as u8, id: head & 0x00ff_ffff, value: word(body)? })
        })
        .collect()
}

impl Decoder for FrameDecoder {
    type Item = Frame;
    type Error = Error;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>> {
        loop {
            if self.data.is_some() {
                return Ok(self.data(input));
            }
            if input.len() < PREFIX_BYTES {
                return Ok(None);
            }
            let head = u32::from_be_bytes(input[..4].try_into().expect("eight bytes are there"));
            let (flags, length) = (input[4], u32::from_be_bytes([0, input[5], input[6], input[7]]) as usize);
            if head & 0x8000_0000 == 0 {
                input.advance(PREFIX_BYTES);
                self.data = Some(DataRest { stream: head, fin: flags & FLAG_FIN != 0, bytes: length });
                continue;
            }
            if (head >> 16) as u16 & 0x7fff != VERSION {
                return Err(Error::Protocol("a frame is not of SPDY/3"));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(Error::Protocol("a control frame is too large"));
            }
            if input.len() < PREFIX_BYTES + length {
                input.reserve(PREFIX_BYTES + length - input.len());
                return Ok(None);
            }
            let frame = input.split_to(PREFIX_BYTES + length);
            if let Some(frame) = self.control(head as u16, flags, &frame[PREFIX_BYTES..])? {
                return Ok(Some(frame));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: impl IntoIterator<Item = Frame>) -> BytesMut {
        let (mut encoder, mut out) = (FrameEncoder::new(), BytesMut::new());
        for frame in frames {
            encoder.encode(frame, &mut out).unwrap();
        }
        out
    }

    fn decode_all(input: &mut BytesMut) -> Result<Vec<Frame>> {
        let mut decoder = FrameDecoder::new();
        std::iter::from_fn(|| decoder.decode(input).transpose()).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let data = Frame::Data { stream: 5, fin: true, payload: Bytes::from_static(b"hi") };
        let golden = [
            (Frame::Ping(7), "800300060000000400000007"),
            (Frame::RstStream { stream: 3, status: reset::CANCEL }, "80030003000000080000000300000005"),
            (Frame::GoAway { last_good: 9, status: goaway::OK }, "80030007000000080000000900000000"),
            (Frame::WindowUpdate { stream: 1, delta: 65536 }, "80030009000000080000000100010000"),
            (
                Frame::Settings(vec![Setting { flags: 1, id: 4, value: 100 }]),
                "800300040000000c000000010100000400000064",
            ),
            (data, "00000005010000026869"),
        ];
        for (frame, bytes) in golden {
            let mut wire = encode([frame.clone()]);
            assert_eq!(hex(&wire), bytes);
            assert_eq!(decode_all(&mut wire).unwrap(), [frame]);
        }
    }

    #[test]
    fn a_syn_stream_made_elsewhere_is_understood() {
        // Prefix, stream 1, associated 0, priority 2, then the header block that zlib made.
        let block = "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff";
        let text = format!("80030001010000280000000100000000{}{block}", "4000");
        let bytes: Vec<u8> =
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
        let expected = Frame::SynStream {
            stream: 1,
            associated: 0,
            priority: 2,
            fin: true,
            unidirectional: false,
            headers: Headers::default().with("streamType", "error"),
        };
        assert_eq!(decode_all(&mut BytesMut::from(&bytes[..])).unwrap(), [expected]);
    }

    #[test]
    fn unknown_control_frames_are_skipped_and_other_versions_refused() {
        let mut wire = BytesMut::from(&b"\x80\x03\x00\x2a\x00\x00\x00\x02zz"[..]);
        wire.extend(encode([Frame::Ping(1)]));
        assert_eq!(decode_all(&mut wire).unwrap(), [Frame::Ping(1)]);
        let mut wire = BytesMut::from(&b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"[..]);
        assert!(decode_all(&mut wire).is_err());
        // HTTP/1 text where a frame should be is a data frame of a stream that nobody opened; never a panic.
        let _ = decode_all(&mut BytesMut::from(&b"HTTP/1.1 200 OK\r\n\r\n"[..]));
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 0u32..0x8000_0000;
        let headers = prop::collection::vec(("[a-z]{1,9}", "[ -~]{0,40}"), 0..4)
            .prop_map(|pairs| pairs.into_iter().fold(Headers::default(), |headers, (n, v)| headers.with(&n, v)));
        prop_oneof![
            (id.clone(), 0u8..8, any::<bool>(), headers.clone()).prop_map(|(stream, priority, fin, headers)| {
                Frame::SynStream { stream, associated: 0, priority, fin, unidirectional: false, headers }
            }),
            (id.clone(), any::<bool>(), headers).prop_map(|(stream, fin, headers)| Frame::SynReply {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            (id, any::<bool>(), prop::collection::vec(any::<u8>(), 0..50))
                .prop_map(|(stream, fin, payload)| Frame::Data { stream, fin, payload: payload.into() }),
        ]
    }

    /// Puts the pieces of data frames together again.
    fn merged(frames: Vec<Frame>) -> Vec<Frame> {
        frames.into_iter().fold(Vec::new(), |mut merged, frame| {
            match (merged.last_mut(), frame) {
                (
                    Some(Frame::Data { stream, fin, payload }),
                    Frame::Data { stream: next, fin: last, payload: more },
                ) if *stream == next && !*fin => {
                    *payload = [payload.as_ref(), more.as_ref()].concat().into();
                    *fin = last;
                }
                (_, frame) => merged.push(frame),
            }
            merged
        })
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(frames in prop::collection::vec(any_frame(), 0..8), cut in 1usize..40) {
            let wire = encode(frames.clone());
            let (mut decoder, mut input, mut seen) = (FrameDecoder::new(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut input).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert!(input.is_empty());
            prop_assert_eq!(merged(seen), merged(frames));
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_all(&mut BytesMut::from(&bytes[..]));
        }
    }
}
