//! The end: after all tests, nothing but what they meant to keep.

use std::time::Duration;

use spore_tests::{data, left};

use crate::image;

pub fn nothing_is_left_and_the_checkpoint_is_as_it_was() {
    left::soon_nothing(Duration::from_secs(30), left::children);
    left::soon_nothing(Duration::from_secs(30), || left::users_of(&data::root()));
    let Some(image) = image::made() else {
        return;
    };
    assert_eq!(left::in_store(image.store().root()), [""; 0]);
    assert_eq!(image.changes(), [""; 0]);
}
