//! Header blocks: lists of names and values, deflated against SPDY's dictionary with state kept for the whole connection.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::{Error, Result};

/// An inflated block larger than this is an attack, not headers.
const INFLATED_BYTES_MAX: usize = 256 * 1024;

/// The words of the SPDY/3 dictionary (draft-mbelshe-httpbis-spdy-00, 2.6.10.1) that carry a length prefix.
const DICTIONARY_WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of the dictionary, which has no length prefixes.
const DICTIONARY_TAIL: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized",
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.as_bytes());
    }
    dictionary.extend(DICTIONARY_TAIL.as_bytes());
    dictionary
});

/// Headers of a stream. Names are lower case on the wire; look-ups ignore case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(4 + self.0.iter().map(|(n, v)| 8 + n.len() + v.len()).sum::<usize>());
        block.extend((self.0.len() as u32).to_be_bytes());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        block
    }

    fn from_block(mut block: &[u8]) -> Result<Self> {
        let count = take_u32(&mut block)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut block)?;
            if name.is_empty() {
                return Err(Error::Protocol("a header has no name"));
            }
            headers.push((name, take_text(&mut block)?));
        }
        if block.is_empty() { Ok(Headers(headers)) } else { Err(Error::Protocol("bytes follow the last header")) }
    }
}

fn take<'a>(block: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, rest) = block.split_at_checked(length).ok_or(Error::Protocol("a header block is cut short"))?;
    *block = rest;
    Ok(head)
}

fn take_u32(block: &mut &[u8]) -> Result<u32> {
    let bytes = take(block, 4)?.try_into().expect("four bytes were taken");
    Ok(u32::from_be_bytes(bytes))
}

fn take_text(block: &mut &[u8]) -> Result<String> {
    let length = take_u32(block)? as usize;
    let text = take(block, length)?;
    String::from_utf8(text.to_vec()).map_err(|_| Error::Protocol("a header is not UTF-8"))
}

/// Deflates the header blocks of one direction of a connection.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).expect("a dictionary may be set before the first byte");
        Deflater(compress)
    }

    pub(super) fn deflate(&mut self, headers: &Headers) -> Result<Vec<u8>> {
        let block = headers.to_block();
        let start = self.0.total_in();
        let mut out = Vec::with_capacity(block.len() + 64);
        loop {
            let consumed = (self.0.total_in() - start) as usize;
            self.0
                .compress_vec(&block[consumed..], &mut out, FlushCompress::Sync)
                .map_err(|_| Error::Protocol("a header block cannot be deflated"))?;
            // Room left over means that the flush is complete.
            if out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(out.len().max(64));
        }
    }
}

/// Inflates the header blocks of the other direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Inflater(Decompress::new(true))
    }

    pub(super) fn inflate(&mut self, input: &[u8]) -> Result<Headers> {
        let start = self.0.total_in();
        let mut out = Vec::with_capacity(512);
        loop {
            let consumed = (self.0.total_in() - start) as usize;
            let produced = out.len();
            match self.0.decompress_vec(&input[consumed..], &mut out, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Error::Protocol("another header dictionary"))?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::Protocol("a header block cannot be inflated")),
                Ok(Status::Ok | Status::BufError) => {}
            }
            let all_in = (self.0.total_in() - start) as usize == input.len();
            if out.len() == out.capacity() {
                if out.len() >= INFLATED_BYTES_MAX {
                    return Err(Error::Protocol("a header block is too large"));
                }
                out.reserve(out.len());
            } else if all_in {
                return Headers::from_block(&out);
            } else if out.len() == produced && (self.0.total_in() - start) as usize == consumed {
                return Err(Error::Protocol("a header block cannot be inflated"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    /// Made with the zlib C library: level 9, the specification's dictionary, a sync flush after each block.
    const GOLDEN: &[(&[(&str, &str)], &str)] = &[
        (&[("streamtype", "error")], "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff"),
        (&[("streamtype", "stdin")], "c22e555c02cc2e00000000ffff"),
        (
            &[("port", "8080"), ("requestid", "0"), ("streamtype", "data")],
            "02255548a95d04ce2016061606409ab30812cb99a0d4cf6880a11954442502000000ffff",
        ),
    ];

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().fold(Headers::default(), |headers, (name, value)| headers.with(name, *value))
    }

    #[test]
    fn dictionary_is_the_specifications() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut compress = Compress::new(Compression::fast(), true);
        assert_eq!(compress.set_dictionary(&DICTIONARY).unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn inflates_what_zlib_deflated() {
        let mut inflater = Inflater::new();
        for (pairs, block) in GOLDEN {
            assert_eq!(inflater.inflate(&unhex(block)).unwrap(), headers(pairs));
        }
    }

    #[test]
    fn refuses_garbage_and_bombs() {
        assert!(Inflater::new().inflate(b"\x00\x01\x02\x03\x04\x05\x06\x07").is_err());
        assert!(Inflater::new().inflate(b"").is_err());
        let bomb = Deflater::new().deflate(&Headers::default().with("a", "x".repeat(4 << 20))).unwrap();
        assert!(bomb.len() < 64 * 1024);
        assert!(matches!(Inflater::new().inflate(&bomb), Err(Error::Protocol("a header block is too large"))));
    }

    proptest! {
        #[test]
        fn any_sequence_of_headers_survives(blocks in prop::collection::vec(
            prop::collection::vec(("[a-z-]{1,20}", "\\PC{0,300}"), 0..6), 1..6)) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for block in blocks {
                let headers = Headers(block);
                let wire = deflater.deflate(&headers).unwrap();
                prop_assert_eq!(inflater.inflate(&wire).unwrap(), headers);
            }
        }

        #[test]
        fn no_block_panics(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Headers::from_block(&block);
            let _ = Inflater::new().inflate(&block);
        }
    }
}
