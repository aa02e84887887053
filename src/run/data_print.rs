//! By what a run knows its data again: short checksums of a split, kept in checkpoints.

use std::fs;

use crate::data::Dataset;
use crate::train::DataPrint;

/// Most images whose files' sizes are looked at, spread evenly over the list.
const MOST_FILES: usize = 256;

/// The checksums of a split: of its list, of what is known about its images, and of the sizes of (some of) their files.
pub(crate) fn of_split(dataset: &Dataset) -> DataPrint {
    let (mut list, mut annotations, mut files) = (0, 0, 0);
    let add = |sum: &mut u32, bytes: &[u8]| *sum = crc32c::crc32c_append(*sum, bytes);
    for frame in &dataset.frames {
        add(&mut list, frame.image.as_bytes());
        add(&mut list, b"\n");
        for object in &frame.objects {
            add(&mut annotations, &(object.class as u64).to_le_bytes());
            let numbers = object.pose.r.iter().chain(object.pose.t_mm.iter());
            numbers.for_each(|number| add(&mut annotations, &number.to_bits().to_le_bytes()));
        }
        add(&mut annotations, format!("{:?}\n", frame.camera).as_bytes());
    }
    let num_images = dataset.frames.len();
    for i in 0..num_images.min(MOST_FILES) {
        let frame = &dataset.frames[i * num_images / num_images.min(MOST_FILES)];
        // A file that is not there is told when it is read.
        let size = fs::metadata(dataset.root.join(&frame.image)).map_or(0, |meta| meta.len());
        add(&mut files, &size.to_le_bytes());
    }
    let text = |sum: u32| format!("{sum:08x}");
    DataPrint {
        num_images: num_images as u64,
        list: text(list),
        annotations: text(annotations),
        file_sizes: text(files),
    }
}
