//! What a recipe can ask for besides integers from end to end: each file plans or writes one scheme. The static one is
//! `plan` and `rewrite`.

pub mod any;
pub mod dynamic;
pub mod float16;
mod lookup;
pub mod sixteen;
pub mod stored;
#[cfg(test)]
mod tests;
pub mod weight_only;
pub mod windows;
mod write_stored;
