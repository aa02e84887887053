//! The parts of the satellite.

/// What a triangle belongs to; decides its material.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Rail,
    Wall,
    PanelEdge,
    PlusX,
    MinusX,
    PlusY,
    MinusY,
    PlusZ,
    MinusZ,
    Ring,
    HoleWall,
    HoleFloor,
    AntennaPlate,
    Connector,
    Rod,
}
