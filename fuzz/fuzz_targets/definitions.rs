//! A schema that somebody writes, and an object that claims to fit it, one document after the other.
#![no_main]

use apimachinery::Value;
use apimachinery::field::Path;
use apimachinery::schema::{self, FieldValidation, compile_crd_schema, decode::Duplicates};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut documents = serde_json::Deserializer::from_slice(data).into_iter::<Value>();
    let (Some(Ok(definition)), Some(Ok(mut object))) = (documents.next(), documents.next()) else { return };
    let Ok((schema, root)) = compile_crd_schema(&definition, &Path::root()) else { return };
    if schema::check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Warn).is_err() {
        return;
    }
    schema::default(&schema, root, &mut object);
    schema::validate(&schema, root, &object);
});
