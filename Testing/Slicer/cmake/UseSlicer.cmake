macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(_py "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
    "SCRIPTS;RESOURCES" ${ARGN})
  foreach(_name TARGET_NAME SCRIPTS DESTINATION_DIR INSTALL_DIR)
    if(NOT DEFINED _py_${_name})
      message(FATAL_ERROR "${_name} is mandatory")
    endif()
  endforeach()
  # Slicer copies them in the build; here at once, for speed.
  foreach(_file ${_py_SCRIPTS} ${_py_RESOURCES})
    configure_file("${CMAKE_CURRENT_SOURCE_DIR}/${_file}" "${_py_DESTINATION_DIR}/${_file}" COPYONLY)
  endforeach()
  set(_installed "${_py_DESTINATION_DIR}")
  if(_py_NO_INSTALL_SUBDIR)
    set(_installed "${_py_DESTINATION_DIR}/")
  endif()
  install(DIRECTORY "${_installed}" DESTINATION "${_py_INSTALL_DIR}" COMPONENT RuntimeLibraries
    USE_SOURCE_PERMISSIONS)
endmacro()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(_module "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(_module_UNPARSED_ARGUMENTS OR NOT DEFINED _module_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule does not take: ${_module_UNPARSED_ARGUMENTS}")
  endif()
  foreach(_file ${_module_SCRIPTS} ${_module_RESOURCES})
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_file}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: no such file: ${_file}")
    endif()
  endforeach()
  ctkMacroCompilePythonScript(
    TARGET_NAME ${_module_NAME}
    SCRIPTS "${_module_SCRIPTS}"
    RESOURCES "${_module_RESOURCES}"
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    NO_INSTALL_SUBDIR)
  if(BUILD_TESTING AND _module_WITH_GENERIC_TESTS)
    add_test(NAME py_nomainwindow_qSlicer${_module_NAME}ModuleGenericTest COMMAND Slicer)
  endif()
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(_test "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  if(_test_UNPARSED_ARGUMENTS OR NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_test_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_unittest: ${_test_UNPARSED_ARGUMENTS} ${_test_SCRIPT}")
  endif()
  get_filename_component(_test_name "${_test_SCRIPT}" NAME_WE)
  add_test(NAME py_${_test_TESTNAME_PREFIX}${_test_name} COMMAND Slicer)
endmacro()

macro(slicer_add_python_test)
  cmake_parse_arguments(_test "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS;SCRIPT_ARGS" ${ARGN})
  if(_test_UNPARSED_ARGUMENTS OR NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_test_SCRIPT}")
    message(FATAL_ERROR "slicer_add_python_test: ${_test_UNPARSED_ARGUMENTS} ${_test_SCRIPT}")
  endif()
  get_filename_component(_test_name "${_test_SCRIPT}" NAME_WE)
  add_test(NAME py_${_test_TESTNAME_PREFIX}${_test_name} COMMAND Slicer)
endmacro()

include(CTest)
