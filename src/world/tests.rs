//! Several worlds in one process, a thread each: to c10d they are processes.

use std::net::TcpListener;
use std::thread;

use super::testing::{free_port, place, together};
use super::*;

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().reshape([-1])).unwrap()
}

#[test]
fn sums_are_equal_in_all_processes_whatever_the_layout() {
    for size in [2, 3] {
        let sums = together(size, |world| {
            let scale = 10f64.powi(world.rank() as i32);
            let first = Tensor::from_slice(&[1.0f32, 2.0, 3.0]) * scale;
            // Channels last, and a view with gaps.
            let image =
                (Tensor::arange(16, (Kind::Float, Device::Cpu)) * scale).reshape([1, 2, 2, 4]);
            let image = image.permute([0, 3, 1, 2]);
            let gaps = image.narrow(2, 1, 1);
            let double = Tensor::from_slice(&[0.1f64]) * scale;
            world.sum(&[first.shallow_clone(), gaps, double.shallow_clone()]).unwrap();
            let largest = Tensor::from_slice(&[world.rank() as f32, -(world.rank() as f32)]);
            world.largest(&[largest.shallow_clone()]).unwrap();
            assert_eq!(floats(&largest), [(world.size() - 1) as f32, 0.0]);
            let mut numbers = [world.rank() as f64, 1.0];
            world.sum_numbers(&mut numbers).unwrap();
            world.barrier().unwrap();
            (floats(&first), floats(&image), double.double_value(&[0]), numbers)
        });
        let factor: f32 = (0..size).map(|r| 10f32.powi(r as i32)).sum();
        for (rank, (first, image, double, numbers)) in sums.iter().enumerate() {
            assert_eq!(first, &[factor, 2.0 * factor, 3.0 * factor]);
            assert_eq!(*double, sums[0].2);
            assert!((double - 0.1 * f64::from(factor)).abs() < 1e-6 * f64::from(factor));
            assert_eq!(numbers, &[(0..size).sum::<usize>() as f64, size as f64]);
            // The other half of the image stays.
            let own = 10f32.powi(rank as i32);
            let image: Vec<f32> = Vec::try_from(
                Tensor::from_slice(image)
                    .reshape([4, 2, 2])
                    .permute([1, 2, 0])
                    .contiguous()
                    .reshape([-1]),
            )
            .unwrap();
            for (i, value) in image.into_iter().enumerate() {
                assert_eq!(value, i as f32 * if i < 8 { own } else { factor }, "{i}");
            }
        }
    }
}

#[test]
fn texts_of_all_and_of_the_first() {
    let found = together(3, |world| {
        let all = world.gather("x".repeat(world.rank() * 5)).unwrap();
        let first = world.from_first(|| Ok(vec![world.rank(), 7])).unwrap();
        let failed = world.from_first(|| -> Result<u32> { bail!("no disk") }).unwrap_err();
        let own = if world.rank() == 1 { Err(anyhow!("no file")) } else { Ok(5) };
        let one_failed = world.all_succeeded(own).unwrap_err();
        assert_eq!(world.all_succeeded(Ok(3)).unwrap(), 3);
        (all, first, failed.to_string(), one_failed.to_string())
    });
    for (rank, (all, first, failed, one_failed)) in found.iter().enumerate() {
        assert_eq!(all, &["".to_owned(), "x".repeat(5), "x".repeat(10)]);
        assert_eq!(first, &[0, 7]);
        assert_eq!(failed, if rank == 0 { "no disk" } else { "process 0 failed: no disk" });
        assert_eq!(one_failed, if rank == 1 { "no file" } else { "process 1 failed: no file" });
    }
}

#[test]
fn one_process_is_left_as_it_is() {
    let world = World::alone();
    let tensor = Tensor::from_slice(&[0.1f32, f32::NAN, -0.0]);
    world.sum(&[tensor.shallow_clone()]).unwrap();
    world.largest(&[tensor.shallow_clone()]).unwrap();
    let bits: Vec<u32> = floats(&tensor).into_iter().map(f32::to_bits).collect();
    assert_eq!(bits, [0.1f32, f32::NAN, -0.0].map(f32::to_bits));
    assert_eq!(world.gather(3).unwrap(), [3]);
    assert_eq!(world.from_first(|| Ok(4)).unwrap(), 4);
}

#[test]
fn whoever_fails_or_vanishes_is_named() {
    let errors = together(3, |world| {
        match world.rank() {
            0 => world.barrier(),
            1 => {
                let error = anyhow!("image 7.png is missing");
                world.tell_failure(&error);
                Err(error)
            }
            _ => Err(anyhow!("silent")), // leaves without a word
        }
        .map_err(|error| error.to_string())
        .unwrap_err()
    });
    assert!(errors[0].contains("process 1 failed: image 7.png is missing"), "{}", errors[0]);
    assert!(errors[0].contains("process 2 does not answer"), "{}", errors[0]);
}

#[test]
fn the_first_process_is_heard_as_the_others_are() {
    let errors = together(3, |world| match world.rank() {
        0 => {
            world.tell_failure(&anyhow!("the disk is full"));
            String::new()
        }
        _ => world.barrier().unwrap_err().to_string(),
    });
    for error in &errors[1..] {
        assert!(error.contains("process 0 failed: the disk is full"), "{error}");
    }
}

#[test]
fn a_meeting_that_fails_says_why() {
    let short = Duration::from_secs(1);
    let text = |place: Place| format!("{:#}", World::meet(&place, short).err().unwrap());
    let port = free_port();
    let missing = text(place(0, 3, port));
    assert!(missing.contains("rank 1, 2 of 3 did not come within 1 s"), "{missing}");
    let nobody = text(place(1, 2, free_port()));
    assert!(nobody.contains("is rank 0 running"), "{nobody}");
    let taken = TcpListener::bind("[::]:0").unwrap();
    let in_use = text(place(0, 2, taken.local_addr().unwrap().port()));
    assert!(in_use.contains("is in use by another program: set MASTER_PORT"), "{in_use}");

    // The sizes differ, and a rank comes twice.
    let both = |others: Place| {
        let port = others.port;
        thread::scope(|scope| {
            let first = scope.spawn(|| text(place(0, 2, port)));
            let second = text(others);
            format!("{} | {second}", first.join().unwrap())
        })
    };
    let differ = both(place(1, 3, free_port()));
    assert!(differ.contains("there are 3 processes, and rank 0 that there are 2"), "{differ}");
}
