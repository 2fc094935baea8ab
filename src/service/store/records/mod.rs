//! What is kept, in the words that all of `service` and `api` speak: a file for each kind of record. Each file imports
//! the others by name; everybody else finds all of them in `store`.

mod artifact;
mod endpoint;
mod job;
mod key;
mod listing;
mod names;
mod settings;
mod time;
mod upload;
mod webhook;

pub use artifact::*;
pub use endpoint::*;
pub use job::*;
pub use key::*;
pub use listing::*;
pub use names::*;
pub use settings::*;
pub use time::*;
pub use upload::*;
pub use webhook::*;
