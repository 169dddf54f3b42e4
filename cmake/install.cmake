# For C++ programs: libraries, headers and find_package(fastyolo), which gives fastyolo::kernels and, where they are
# built, fastyolo::plugins. The wheel has the plugins alone.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/fastyolo)

set_target_properties(fastyolo_kernels PROPERTIES EXPORT_NAME kernels)
install(TARGETS fastyolo_kernels EXPORT fastyolo
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fastyolo)
if(FASTYOLO_WITH_PLUGINS)
  set_target_properties(fastyolo_plugins PROPERTIES EXPORT_NAME plugins)
  install(TARGETS fastyolo_plugins EXPORT fastyolo)
endif()
install(EXPORT fastyolo NAMESPACE fastyolo:: FILE fastyoloTargets.cmake DESTINATION ${package_folder})

configure_package_config_file(cmake/fastyoloConfig.cmake.in fastyoloConfig.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(fastyoloConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fastyoloConfig.cmake ${PROJECT_BINARY_DIR}/fastyoloConfigVersion.cmake
  DESTINATION ${package_folder})
