"""What `amct_onnx COMMAND --help` shows below the options: examples, which docs/cli.md has too."""

EXAMPLES = {
    "calibration": """\
examples:
  amct_onnx calibration --model net.onnx --save_path out/net --data data/
  amct_onnx calibration --model=net.onnx --save_path=out/net --data_dir=bins --data_types=float32 \\
      --input_shape="image:1,1,8,8" --batch_num=2 --calibration_config=quant.cfg
  amct_onnx calibration --model net.onnx --save_path out/net --data data/ --target sqnr:30 --report
  amct_onnx calibration --model net.onnx --save_path out/net --evaluator evaluator.py --batch_num 2

--data is the easy form: a directory with one batch per file (.npy, .npz or raw), or one .npz or .npy file. The other
three are AMCT's: raw files, whose element type and shape must be said. A shape may follow a name with colons in it:
the last colon counts. --evaluator takes a loop of the user's own instead, see docs/auto-calibration.md.
All options may be written --option value or --option=value.
Exit status: 0 written, 1 an error, which is explained and leaves no file, 2 wrong usage.
""",
    "convert": """\
examples:
  amct_onnx convert --model qat.onnx --save_path out/qat
  amct_onnx convert --model net.onnx --record out/net_record.txt --save_path out/again --data data/

Without data the result is compared with the original on random numbers, which says little about accuracy.
Exit status: 0 written, 1 an error, which is explained and leaves no file, 2 wrong usage.
""",
    "convert-caffe": """\
examples:
  amct_onnx convert-caffe net.prototxt net.caffemodel --output caffe.onnx
""",
    "plan": """\
examples:
  amct_onnx plan net.onnx
  amct_onnx plan net.onnx --config quant.cfg --all
""",
    "compare": """\
examples:
  amct_onnx compare net.onnx out/net_fake_quant_model.onnx --data data/
""",
    "verify": """\
examples:
  amct_onnx verify out/net_deploy_model.onnx
  amct_onnx verify out/net_deploy_model.onnx --record out/net_record.txt --float-model net.onnx
  amct_onnx verify out/net_deploy_model.onnx --json report.json && atc --model=out/net_deploy_model.onnx ...
""",
    "simulate": """\
examples:
  amct_onnx simulate out/net_deploy_model.onnx --data data/ --profile fixpipe --save outputs.npz
  amct_onnx simulate out/net_deploy_model.onnx --data data/ --profile v200 --reference out/net_fake_quant_model.onnx
""",
    "agreement": """\
examples:
  amct_onnx agreement net.onnx out/net_fake_quant_model.onnx out/net_deploy_model.onnx --data data/
  amct_onnx agreement net.onnx out/net_fake_quant_model.onnx out/net_deploy_model.onnx --data data/ \\
      --profiles fixpipe --html report.html --json report.json
""",
    "completion": """\
examples:
  eval "$(amct_onnx completion bash)"       for ~/.bashrc; zsh likewise in ~/.zshrc
  amct_onnx completion fish | source        for config.fish
""",
}
