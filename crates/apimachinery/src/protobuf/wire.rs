//! Protobuf's wire format, written: tags, varints and fields whose length comes first. Knows nothing of schemas.

pub const VARINT: u32 = 0;
pub const FIXED64: u32 = 1;
pub const LENGTH: u32 = 2;

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn tag(out: &mut Vec<u8>, number: u32, wire: u32) {
    varint(out, u64::from(number << 3 | wire));
}

pub fn varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    tag(out, number, VARINT);
    varint(out, value);
}

pub fn bytes_field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    tag(out, number, LENGTH);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn text_field(out: &mut Vec<u8>, number: u32, text: &str) {
    bytes_field(out, number, text.as_bytes());
}

/// A field whose length is known when its content is written. Most are below 128 bytes; others are moved by what their length takes.
pub fn nested<E>(out: &mut Vec<u8>, number: u32, content: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    tag(out, number, LENGTH);
    let start = out.len();
    out.push(0);
    content(out)?;
    let length = out.len() - start - 1;
    let more = varint_len(length as u64) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(start + 1..start + 1 + length, start + 1 + more);
    }
    let mut rest = length as u64;
    for (at, byte) in out[start..=start + more].iter_mut().enumerate() {
        *byte = rest as u8 & 0x7f | if at < more { 0x80 } else { 0 };
        rest >>= 7;
    }
    Ok(())
}
