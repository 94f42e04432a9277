//! Bodies in YAML. What is written is read back the same.
#![no_main]

use apimachinery::schema::decode::{from_yaml, to_yaml};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((root, body)) = fuzz::kind(data) else { return };
    let Ok(decoded) = from_yaml(body) else { return };
    let written = to_yaml(&decoded.value);
    let again = from_yaml(written.as_bytes()).expect("what was written can be read");
    assert_eq!(again.value, decoded.value, "{written}");
    fuzz::object(root, decoded.value);
});
