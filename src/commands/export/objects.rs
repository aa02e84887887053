//! The objects that an exported file carries, so that `mqat predict` needs nothing else.

use anyhow::{Result, bail, ensure};

use super::{ExportRequest, ExportTarget};
use crate::artifact::Artifact;
use crate::data::object_boxes;
use crate::run::objects;
use crate::train::ObjectInfo;

/// Those of the artifact; where it carries none those of `--boxes`, else of the dataset of `--data`; else none.
///
/// # Errors
/// If the boxes cannot be read or do not fit the classes of the network, or an option cannot act.
pub(super) fn find(request: &ExportRequest, artifact: &Artifact) -> Result<Vec<ObjectInfo>> {
    let uses_images =
        matches!(&request.target, ExportTarget::Onnx(options) if options.uses_dataset());
    if let Some(own) = artifact.objects()? {
        let at = artifact.file.display();
        ensure!(
            request.boxes.is_none(),
            "--boxes cannot act: {at} carries its objects; leave it out"
        );
        ensure!(
            request.data.is_none() || uses_images,
            "--data cannot act: {at} carries its objects and no image is used; leave it out, or add --calibrate or --check \
             with --format onnx"
        );
        return Ok(own);
    }
    let data = &artifact.config.data;
    match (&request.boxes, &request.data) {
        (Some(boxes), named) => {
            ensure!(
                named.is_none() || uses_images,
                "--data cannot act: --boxes {} has the objects' boxes and no image is used; leave it out",
                boxes.display()
            );
            objects::describe(&object_boxes(boxes, None, data)?, None, data)
        }
        (None, Some(named)) => {
            let roots = [named.clone(), named.join(request.select.problem())];
            let Some((root, boxes)) = objects::first_of(roots, data)? else {
                bail!(
                    "--data: the objects' boxes (data.BBOX_FILE, {}) are not in {}: name another dataset, or the file of \
                     boxes alone with --boxes",
                    data.bbox_file,
                    named.display()
                );
            };
            objects::describe(&boxes, Some(&root), data)
        }
        (None, None) => Ok(Vec::new()),
    }
}
