//! Bodies in protobuf, with and without the envelope's first bytes. What is decoded can be encoded, and is read back the same.
#![no_main]

use apimachinery::protobuf::decode;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    _ = decode(data);
    let enveloped = [b"k8s\0", data].concat();
    let Ok(value) = decode(&enveloped) else { return };
    let Some((root, _)) = fuzz::kind(data) else { return };
    fuzz::object(root, value);
});
