//! `Debug` of the messages that hold secrets, without the secrets.

use std::fmt;

use crate::{enrolment, types};

impl fmt::Debug for types::v1::StoreAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreAccess")
            .field("store_id", &self.store_id)
            .field("expires_at_millis", &self.expires_at_millis)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for enrolment::v1::EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest").field("instance_id", &self.instance_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let access = types::v1::StoreAccess {
            store_id: "sto".to_owned(),
            secret_json: b"hush".to_vec(),
            ..Default::default()
        };
        let stores = crate::worker::v1::Stores { stores: vec![access] };
        let bytes = format!("{:?}", b"hush".to_vec());
        assert!(!format!("{stores:?}").contains(&bytes) && !format!("{stores:?}").contains("hush"));
        let enrol = enrolment::v1::EnrolRequest { join_token: "jt_hush".to_owned(), ..Default::default() };
        assert!(!format!("{enrol:?}").contains("hush"));
    }
}
