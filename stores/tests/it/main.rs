//! Opened stores, against real folders and an S3 service inside this process.

mod folder;
mod s3;
