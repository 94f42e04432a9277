//! (module docs to come with the first code)
