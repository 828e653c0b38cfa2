"""The operators that a network may call: each computes tensors from tensors and nothing else.

A TorchScript or torch.export file is a program. It is taken where it calls only these: none of them
reads or writes a file, and none calls code that the file does not show.
"""

_NAMES = """
_convolution conv1d conv2d conv_transpose2d convolution linear matmul mm bmm addmm baddbmm addbmm mv
dot einsum outer
batch_norm layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm norm
_native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm
linalg_vector_norm linalg_norm frobenius_norm normalize
relu relu6 prelu leaky_relu elu celu selu gelu silu hardswish hardsigmoid hardtanh sigmoid log_sigmoid
tanh softplus softmax log_softmax _softmax _log_softmax softsign mish threshold glu rrelu hardshrink
softshrink rrelu_with_noise
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow reciprocal abs neg sign ceil floor round
trunc frac sin cos tan atan atan2 erf clamp clamp_min clamp_max clip minimum maximum fmod remainder
add sub rsub mul div true_divide floor_divide floordiv addcmul addcdiv lerp where masked_fill
eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite
bitwise_and bitwise_or bitwise_not
sum mean prod max min amax amin argmax argmin var std var_mean std_mean cumsum all any logsumexp
topk sort median max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d
adaptive_max_pool2d _adaptive_avg_pool2d avg_pool1d max_pool1d
upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa interpolate grid_sampler grid_sampler_2d affine_grid_generator pixel_shuffle
pixel_unshuffle channel_shuffle
view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze transpose permute
movedim t T mT swapaxes expand expand_as broadcast_to repeat repeat_interleave tile contiguous clone
alias detach lift_fresh_copy cat concat stack split split_with_sizes chunk unbind narrow slice select
index index_select gather take roll flip rot90 pad constant_pad_nd reflection_pad2d replication_pad2d
im2col col2im unfold tril triu diagonal scatter masked_select slice_scatter select_scatter copy fill
zeros ones full zeros_like ones_like full_like empty empty_like new_zeros new_ones new_full new_empty
arange linspace eye tensor scalar_tensor meshgrid one_hot zero
to type_as float half double int bool long type _to_copy cpu _assert_tensor_metadata
scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
_scaled_dot_product_efficient_attention _native_multi_head_attention
_transformer_encoder_layer_fwd
dropout feature_dropout alpha_dropout
size sym_size sym_numel sym_stride dim numel stride is_floating_point item len Int Float Bool
IntImplicit FloatImplicit ScalarImplicit
is_grad_enabled is_autocast_enabled is_nested is_cuda is_quantized is_sparse
__is__ __isnot__ __not__ __and__ __or__ __contains__ __getitem__ format warn append list
__derive_index __range_length extend insert pop index_put _assert_async _assert_scalar is_complex
copy result_type __interpolate __range_list dict str ord lower startswith
cosine_similarity pairwise_distance cdist
"""

TENSOR_OPERATORS = frozenset(_NAMES.split())


def is_tensor_operator(name: str) -> bool:
    """Tell whether an operator only computes tensors.

    Args:
        name: ATen's name, without its namespace and overload; a form that changes its input ends in
            an underscore.
    """
    return name in TENSOR_OPERATORS or (
        name.endswith("_") and not name.endswith("__") and name[:-1] in TENSOR_OPERATORS
    )
