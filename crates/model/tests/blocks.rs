//! Stored blocks of a GGUF file against the values that are read from it.

use luthier_model::source::Source;

mod tiny;
use tiny::tiny_llama;

#[test]
fn stored_blocks_hold_the_values_of_their_tensor_in_its_order() {
    let mut file = tiny_llama();
    // The query's rows are interleaved in the file; as 4-bit blocks they have to be put in order.
    let query = file.tensors.iter_mut().find(|t| t.name == "blk.0.attn_q.weight").unwrap();
    query.ty = 2;
    query.data = (0..32 * 18).map(|i| (i * 11 % 59) as u8).collect();
    let dir = tempfile::tempdir().unwrap();
    let source = Source::open(&file.write(dir.path())).unwrap();
    for name in ["self_attn.q_proj", "mlp.up_proj"] {
        let name = format!("model.layers.0.{name}.weight");
        let blocks = source.load_blocks(&name).unwrap().expect("stored as Q4_0");
        let want = source.load_f32(&name).unwrap();
        assert_eq!([blocks.dims().0, blocks.dims().1], source.shape(&name).unwrap());
        let mut got = vec![f32::NAN; want.len()];
        blocks.read(0, &mut got);
        assert_eq!(got, want, "{name}");
    }
    assert!(source.load_blocks("model.layers.0.self_attn.k_proj.weight").unwrap().is_none());
    assert!(source.load_blocks("model.norm.weight").unwrap().is_none());
    assert_eq!(source.load_blocks("model.absent").unwrap_err().exit_code(), 2);
}
