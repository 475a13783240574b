//! The mount on the real kernel (as root, with `/dev/fuse`), over folders and over an S3 in this process.
#![allow(clippy::print_stderr, missing_docs, unreachable_pub)]

mod ffmpeg;
mod inputs;
mod liveness;
mod model;
mod outputs;
mod s3;
mod sealing;
mod support;
