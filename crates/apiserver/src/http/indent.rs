//! Indents JSON as it passes by, so that a list of any size needs no more memory for it.

use bytes::{BufMut as _, Bytes, BytesMut};

const STEP: &[u8] = b"  ";

/// Where in a document the text has got to. Expects compact JSON; spaces between tokens are dropped.
#[derive(Default)]
pub struct Indenter {
    depth: usize,
    in_string: bool,
    /// The next character belongs to an escape sequence.
    escaped: bool,
    /// A bracket was opened and nothing has followed yet: an empty pair stays together.
    just_opened: bool,
}

impl Indenter {
    /// The next piece of the document, indented.
    pub fn feed(&mut self, piece: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(piece.len() * 2);
        for &byte in piece {
            if self.in_string {
                out.put_u8(byte);
                (self.in_string, self.escaped) = match (self.escaped, byte) {
                    (false, b'"') => (false, false),
                    (false, b'\\') => (true, true),
                    _ => (true, false),
                };
            } else {
                self.token(&mut out, byte);
            }
        }
        out.freeze()
    }

    fn token(&mut self, out: &mut BytesMut, byte: u8) {
        if byte.is_ascii_whitespace() {
            return;
        }
        let closes = matches!(byte, b'}' | b']');
        if closes {
            self.depth = self.depth.saturating_sub(1);
        }
        if std::mem::take(&mut self.just_opened) != closes {
            self.new_line(out);
        }
        out.put_u8(byte);
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                self.just_opened = true;
            }
            b':' => out.put_u8(b' '),
            b',' => self.new_line(out),
            _ => {}
        }
    }

    fn new_line(&self, out: &mut BytesMut) {
        out.put_u8(b'\n');
        for _ in 0..self.depth {
            out.put_slice(STEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            "[\\\\\"{}\\[\\],: \n]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn looks_as_if_printed_whole(value in json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
            let text = value.to_string();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([text.len()]).collect();
            ends.sort_unstable();
            let mut indenter = Indenter::default();
            let mut out = Vec::new();
            let mut start = 0;
            for end in ends {
                out.extend(indenter.feed(&text.as_bytes()[start..end]));
                start = end;
            }
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        }
    }

    #[test]
    fn broken_documents_do_no_harm() {
        let mut indenter = Indenter::default();
        assert_eq!(indenter.feed(b"]]}\"a\\"), &b"\n]\n]\n}\"a\\"[..]);
        assert_eq!(indenter.feed(b"\"b\"]"), &b"\"b\"\n]"[..]);
    }
}
