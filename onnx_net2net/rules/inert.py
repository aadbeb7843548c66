"""Attributes that touch no axis, of each operator that has them.

What its rule neither reads nor finds here freezes a node: an attribute that a newer operator set brings may change
which dims are free, as the window of Attention did, and so may an operand.
"""

_PLACES = "auto_pad dilations kernel_shape pads strides"  # of a kernel, along axes that never grow
_GATES = "activation_alpha activation_beta activations clip direction"
_MICROSOFT = "com.microsoft"
_BODY = "onnx_net2net.body"

INERT: tuple[tuple[str, str, str], ...] = (
    # attributes, operators, domain
    (_PLACES, "AveragePool Col2Im Conv ConvInteger ConvTranspose DeformConv LpPool MaxPool QLinearConv", ""),
    ("ceil_mode", "AveragePool LpPool MaxPool", ""),
    ("count_include_pad", "AveragePool", ""),
    ("storage_order", "MaxPool", ""),  # of the indices, which are fixed
    ("output_padding output_shape", "ConvTranspose", ""),
    ("p", "GlobalLpPool LpNormalization LpPool", ""),
    ("antialias cubic_coeff_a exclude_outside extrapolation_value mode nearest_mode", "Resize Upsample", ""),
    ("align_corners mode padding_mode", "GridSample", ""),
    ("coordinate_transformation_mode mode output_height output_width sampling_ratio spatial_scale", "RoiAlign", ""),
    ("pooled_shape spatial_scale", "MaxRoiPool", ""),
    ("alpha", "Affine Celu Elu HardSigmoid LeakyRelu LRN ParametricSoftplus ScaledTanh Selu SwiGLU Swish "
     "ThresholdedRelu", ""),
    ("alpha beta", "Gemm", ""),
    ("beta", "Affine HardSigmoid LRN ParametricSoftplus ScaledTanh", ""),
    ("bias", "ImageScaler LRN Shrink", ""),
    ("gamma", "Selu", ""),
    ("lambd", "Shrink", ""),
    ("scale", "Crop ImageScaler Scale", ""),
    ("border", "Crop", ""),
    ("size", "LRN", ""),
    ("approximate", "Gelu", ""),
    ("activation", "CausalConvWithState", ""),
    ("detect_negative detect_positive", "IsInf", ""),
    ("direction", "BitShift", ""),
    ("fmod", "Mod", ""),
    ("round_mode saturate", "Cast CastLike", ""),
    ("to", "BitCast", ""),  # a type of the same size
    ("output_dtype precision saturate", "DequantizeLinear QuantizeLinear", ""),
    ("is_test ratio seed", "Dropout", ""),
    ("epsilon is_test momentum", "BatchNormalization", ""),
    ("epsilon", "InstanceNormalization", ""),
    ("epsilon stash_type", "GroupNormalization LayerNormalization RMSNormalization SimplifiedLayerNormalization", ""),
    ("axes", "Squeeze Unsqueeze", ""),  # sizes tell what is merged
    ("axis", "Flatten", ""),
    ("num_outputs", "Split", ""),
    ("value", "ConstantOfShape", ""),
    ("sparse_value value value_float value_floats value_int value_ints value_string value_strings", "Constant", ""),
    ("end start", "Shape", ""),
    ("stash_type", "Range", ""),
    ("dtype high low mean scale seed shape", "RandomNormal RandomUniform", ""),
    ("noop_with_empty_axes", "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
     "ReduceSum ReduceSumSquare", ""),  # read where there are no axes
    ("select_last_index", "ArgMax ArgMin", ""),
    ("k largest sorted", "TopK", ""),
    ("exclusive reverse", "CumProd CumSum", ""),
    ("reduction", "ScatterElements", ""),
    ("mode", "TensorScatter", ""),
    ("upper", "Trilu", ""),
    ("inverse onesided", "DFT STFT", ""),
    ("ignore_index", "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", ""),
    (f"{_GATES} input_forget linear_before_reset output_sequence", "GRU LSTM RNN", ""),
    ("qk_matmul_output_mode softcap softmax_precision", "Attention", ""),
    ("frame", "If Loop LoopStart Scan ScanStart", _BODY),
    ("conditions num_scan_inputs scan_input_axes scan_input_directions scan_output_directions states",
     "Loop LoopStart Scan ScanStart", _BODY),
    ("scan_output_axes", "ScanStart", _BODY),
    (_PLACES, "FusedConv MaxpoolWithMask QLinearAveragePool QLinearConv", _MICROSOFT),
    ("ceil_mode count_include_pad", "QLinearAveragePool", _MICROSOFT),
    ("storage_order", "MaxpoolWithMask", _MICROSOFT),
    ("activation_alpha activation_beta activation_gamma", "FusedGemm", _MICROSOFT),
    ("alpha", "FusedGemm FusedMatMul QGemm QLinearLeakyRelu QuickGelu TransposeMatMul", _MICROSOFT),
    ("beta", "FusedGemm", _MICROSOFT),
    ("metric", "CDist", _MICROSOFT),
    ("seed", "BiasDropout BitmaskDropout", _MICROSOFT),
    ("align_corners mode padding_mode", "GridSample", _MICROSOFT),
    ("upper", "Trilu", _MICROSOFT),
    ("epsilon", "EmbedLayerNormalization GroupNorm SkipGroupNorm SkipLayerNormalization "
     "SkipSimplifiedLayerNormalization", _MICROSOFT),
    ("mask_index_type", "EmbedLayerNormalization", _MICROSOFT),
    ("activation", "GroupNorm SkipGroupNorm", _MICROSOFT),
    ("accuracy_level bits", "MatMulNBits", _MICROSOFT),
    ("mask_filter_value past_present_share_buffer", "Attention MultiHeadAttention", _MICROSOFT),
    ("scale", "Attention RotaryEmbedding", _MICROSOFT),  # the width of queries and keys is fixed there
    ("causal do_rotary k_norm_epsilon local_window_size q_norm_epsilon qk_norm_epsilon qk_output rotary_interleaved "
     "smooth_softmax softcap", "GroupQueryAttention", _MICROSOFT),  # positions and widths are fixed there
)  # fmt: skip


def table() -> dict[tuple[str, str], set[str]]:
    """Return the names by (domain, operator)."""
    names: dict[tuple[str, str], set[str]] = {}
    for attributes, kinds, domain in INERT:
        for kind in kinds.split():
            names.setdefault((domain, kind), set()).update(attributes.split())
    return names
