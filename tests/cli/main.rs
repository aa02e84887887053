//! What a user sees: the program as a process, in fresh folders.

mod config;
mod flow;
mod help;
mod pipeline;
mod resume;
mod score;
mod support;
