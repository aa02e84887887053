//! Which errors of two evaluations are alike: those of one sequence of the list.

use crate::data::sequence_of;
use crate::pose::Sequences;

/// The sequences of evaluated objects, from the image of each; the images where all are of one sequence.
pub fn sequences_of_objects<'a>(images: impl IntoIterator<Item = &'a str>) -> Sequences {
    let images: Vec<&str> = images.into_iter().collect();
    let names: Vec<&str> = images.iter().map(|image| sequence_of(image)).collect();
    Sequences::new(&names, &images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_sequence_err_together() {
        let (a, b, c) = ("seq_0/rgb/0.png", "seq_0/rgb/1.png", "seq_1/rgb/0.png");
        let two = sequences_of_objects([a, b, c]);
        assert_eq!((two.len(), two.are_images()), (2, false));
        let one = sequences_of_objects([a, b, b]);
        assert_eq!((one.len(), one.are_images()), (2, true));
    }
}
