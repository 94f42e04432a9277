//! Why a text is not JSON, in the words of Go's scanner. Runs only on texts that failed to decode.

/// `None` when the text is well-formed after all (then the fault is another, such as depth).
pub fn explain(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    match scanner.document() {
        Ok(()) => None,
        Err(Fault::End) => Some("unexpected end of JSON input".into()),
        Err(Fault::Character(at, context)) => Some(format!("invalid character {} {context}", quote(text, at))),
    }
}

enum Fault {
    End,
    Character(usize, String),
}

type Step<T = ()> = Result<T, Fault>;

/// A character as Go's `quoteChar` shows it.
fn quote(text: &[u8], at: usize) -> String {
    match text[at] {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        b @ (0x20..=0x7e) => format!("'{}'", b as char),
        b @ 0xa1.. => format!("'{}'", b as char),
        b => format!("'\\x{b:02x}'"),
    }
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

/// What closes each open container, and what the scanner expects next within it.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Value,
    FirstValueOrEnd,
    FirstKeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
}

impl Scanner<'_> {
    fn skip_space(&mut self) {
        while self.text.get(self.at).is_some_and(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Step<u8> {
        self.text.get(self.at).copied().ok_or(Fault::End)
    }

    fn fault<T>(&self, context: &str) -> Step<T> {
        Err(Fault::Character(self.at, context.to_owned()))
    }

    /// Iterative, so that hostile nesting costs heap and not stack.
    fn document(&mut self) -> Step {
        let mut open: Vec<u8> = Vec::new();
        let mut expect = Expect::Value;
        loop {
            self.skip_space();
            let byte = self.peek()?;
            expect = match (expect, byte) {
                (Expect::FirstKeyOrEnd, b'}') | (Expect::FirstValueOrEnd, b']') => self.close(&mut open),
                (Expect::FirstKeyOrEnd | Expect::Key, b'"') => {
                    self.string()?;
                    Expect::Colon
                }
                (Expect::FirstKeyOrEnd | Expect::Key, _) => {
                    return self.fault("looking for beginning of object key string");
                }
                (Expect::Colon, b':') => {
                    self.at += 1;
                    Expect::Value
                }
                (Expect::Colon, _) => return self.fault("after object key"),
                (Expect::CommaOrEnd, b',') => {
                    self.at += 1;
                    if open.last() == Some(&b'{') { Expect::Key } else { Expect::Value }
                }
                (Expect::CommaOrEnd, b'}') if open.last() == Some(&b'{') => self.close(&mut open),
                (Expect::CommaOrEnd, b']') if open.last() == Some(&b'[') => self.close(&mut open),
                (Expect::CommaOrEnd, _) if open.last() == Some(&b'{') => {
                    return self.fault("after object key:value pair");
                }
                (Expect::CommaOrEnd, _) => return self.fault("after array element"),
                (Expect::Value | Expect::FirstValueOrEnd, b'{' | b'[') => {
                    self.at += 1;
                    open.push(byte);
                    if byte == b'{' { Expect::FirstKeyOrEnd } else { Expect::FirstValueOrEnd }
                }
                (Expect::Value | Expect::FirstValueOrEnd, _) => {
                    self.scalar(byte)?;
                    Expect::CommaOrEnd
                }
            };
            if open.is_empty() && expect == Expect::CommaOrEnd {
                break;
            }
        }
        self.skip_space();
        if self.at < self.text.len() { self.fault("after top-level value") } else { Ok(()) }
    }

    fn close(&mut self, open: &mut Vec<u8>) -> Expect {
        self.at += 1;
        open.pop();
        Expect::CommaOrEnd
    }

    fn scalar(&mut self, byte: u8) -> Step {
        match byte {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            _ => self.fault("looking for beginning of value"),
        }
    }

    fn literal(&mut self, word: &str) -> Step {
        for (i, expected) in word.bytes().enumerate() {
            if self.peek()? != expected {
                return self.fault(&format!("in literal {word} (expecting {:?})", word.as_bytes()[i] as char));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Step {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'u' => {
                            for _ in 0..4 {
                                self.at += 1;
                                if !self.peek()?.is_ascii_hexdigit() {
                                    return self.fault("in \\u hexadecimal character escape");
                                }
                            }
                        }
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                        _ => return self.fault("in string escape code"),
                    }
                }
                0..0x20 => return self.fault("in string literal"),
                _ => {}
            }
            self.at += 1;
        }
        self.at += 1;
        Ok(())
    }

    fn number(&mut self) -> Step {
        if self.peek()? == b'-' {
            self.at += 1;
            if !self.peek()?.is_ascii_digit() {
                return self.fault("in numeric literal");
            }
        }
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits();
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.peek()?.is_ascii_digit() {
                return self.fault("after decimal point in numeric literal");
            }
            self.digits();
        }
        if self.text.get(self.at).is_some_and(|b| matches!(b, b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            if !self.peek()?.is_ascii_digit() {
                return self.fault("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn wording() {
        let cases = [
            ("", Some("unexpected end of JSON input")),
            ("{\"a\": [1, 2", Some("unexpected end of JSON input")),
            ("hello", Some("invalid character 'h' looking for beginning of value")),
            ("{a: 1}", Some("invalid character 'a' looking for beginning of object key string")),
            ("{\"a\" 1}", Some("invalid character '1' after object key")),
            ("{\"a\": 1 \"b\"}", Some("invalid character '\"' after object key:value pair")),
            ("[1 2]", Some("invalid character '2' after array element")),
            ("{} x", Some("invalid character 'x' after top-level value")),
            ("trux", Some("invalid character 'x' in literal true (expecting 'e')")),
            ("\"a\nb\"", Some("invalid character '\\n' in string literal")),
            ("\"\\x\"", Some("invalid character 'x' in string escape code")),
            ("1.x", Some("invalid character 'x' after decimal point in numeric literal")),
            ("[1,]", Some("invalid character ']' looking for beginning of value")),
            ("{\"a\":1,}", Some("invalid character '}' looking for beginning of object key string")),
            (" {\"a\":[{},[],-1.5e+3,null]} ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(explain(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }
}
